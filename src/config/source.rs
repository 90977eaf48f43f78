//! Reads the files of a configuration and fills in `${env:NAME}` and `${file:PATH}`.

use std::fs;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Report, Source};
use super::files::Files;
use super::tree::Document;

/// A configuration file beyond this size is a mistake (a table of a million users has some 50 MB).
pub(crate) const MAX_FILE: u64 = 1 << 30;
/// A placeholder brings in a secret or a name, not a book.
const MAX_FILLED: u64 = 64 << 10;

/// Reads and parses one file, with its placeholders filled in.
pub(crate) fn read_document(files: &Files, path: &Path, report: &mut Report) -> Option<Document> {
    let text = match files.text(path) {
        Ok(text) => text,
        Err(why) => {
            report.push(Diagnostic::about_file(path, why));
            return None;
        }
    };
    let source = Arc::new(Source::new(path.to_owned(), text));
    let mut document = Document::parse(source, report)?;
    fill(&mut document, report);
    Some(document)
}

/// Reads a regular file; the error is a clause to follow the file's name.
pub fn read_limited_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let describe = |error: std::io::Error| format!("cannot be read: {error}");
    let metadata = fs::metadata(path).map_err(describe)?;
    if metadata.is_dir() {
        return Err("is a directory, a file is needed".to_owned());
    }
    if !metadata.is_file() {
        // A FIFO or a device would block the start for ever.
        return Err("is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(describe)?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    Ok(bytes)
}

/// The content of a file as text.
pub(crate) fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        format!("is not UTF-8 text: byte {good} does not belong to any character")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The files on disk that a pattern of the file `from` names, in the order of their names.
pub(crate) fn files_on_disk(pattern: &str, from: &Path) -> Result<Vec<PathBuf>, String> {
    let full = relative_to(from, Path::new(pattern));
    if !pattern.contains(['*', '?', '[']) {
        return fs::metadata(&full).map(|_| vec![full.clone()]).map_err(|error| format!("{}: cannot be read: {error}", full.display()));
    }
    let directory = full.parent().unwrap_or(Path::new("/"));
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !directory.to_string_lossy().contains(['*', '?', '[']) {
        fs::read_dir(directory).map_err(|error| format!("{}: cannot be read: {error}", directory.display()))?;
    }
    let Some(full) = full.to_str() else { return Err(format!("`{pattern}` leads to a path that is not UTF-8")) };
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let paths = glob::glob_with(full, options).map_err(|error| format!("`{pattern}` is no pattern: {}", error.msg))?;
    let mut files = paths.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    files.sort();
    Ok(files)
}

/// Files are relative to the file that names them.
pub(crate) fn relative_to(from: &Path, path: &Path) -> PathBuf {
    from.parent().unwrap_or(Path::new("")).join(path)
}

// === Placeholders ===

fn fill(document: &mut Document, report: &mut Report) {
    let source = document.source.clone();
    if !source.text.contains("${") {
        return;
    }
    let mut unfilled = Vec::new();
    document.root.for_each_scalar(&mut |span: &Range<usize>, text, filled| {
        if !text.contains("${") {
            return;
        }
        match filled_in(text, &source.path) {
            Ok(new) => {
                *filled = *filled || new != *text;
                *text = new;
            }
            Err((why, help)) => {
                let place = super::diagnostic::Place { source: source.clone(), span: span.clone() };
                report.push(Diagnostic::error(place, why).with_help(help));
                unfilled.push(span.clone());
            }
        }
    });
    // What could not be filled in is reported once: nothing else is said about it. From the back, so that the numbers of
    // list items stay right.
    document.root.paths_of(&unfilled, &mut Vec::new(), &mut document.pruned);
    for path in document.pruned.iter().rev() {
        document.root.prune(path);
    }
}

type Unfilled = (String, String);

fn filled_in(text: &str, from: &Path) -> Result<String, Unfilled> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, tail) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            // `$${` stands for a literal `${`.
            out.push_str(before);
            out.push_str("${");
            rest = tail.get(2..).unwrap_or_default();
            continue;
        }
        out.push_str(before);
        let Some(end) = tail.find('}') else {
            return Err(("`${` is not closed".into(), "write `${env:NAME}` or `${file:PATH}`; `$${` for a literal `${`".into()));
        };
        out.push_str(&placeholder(tail.get(2..end).unwrap_or_default(), from)?);
        rest = tail.get(end + 1..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out)
}

fn placeholder(name: &str, from: &Path) -> Result<String, Unfilled> {
    match name.split_once(':') {
        Some(("env", name)) => std::env::var(name)
            .map_err(|_| (format!("the environment has no variable `{name}`"), "set it for the process, or write the value here".into())),
        Some(("file", path)) => {
            let path = relative_to(from, Path::new(path));
            let text = read_limited_bytes(&path, MAX_FILLED)
                .and_then(text_of)
                .map_err(|why| (format!("{}: {why}", path.display()), "the path is relative to the file that names it".into()))?;
            Ok(text.trim_end_matches(['\n', '\r']).to_owned())
        }
        _ => Err((
            format!("`${{{name}}}` is no placeholder"),
            format!("write `${{env:{name}}}` for a variable of the environment, `${{file:PATH}}` for a file's content"),
        )),
    }
}
