//! Commands that answer from the files alone.

use std::process::ExitCode;

use super::{Check, Explain, Files as SchemaFiles, Format, Schema, exit, plural, print, say};
use crate::config::diagnostic::Severity;
use crate::config::files::Files;
use crate::explain::{Asked, Knowledge};
use crate::load::load_from_disk;
use crate::{admin, config, lifecycle};

pub(super) fn check(options: &Check) -> ExitCode {
    let file = &options.file;
    let (loaded, _) = load_from_disk(&file.config, &config::Previous::default());
    let verdict = Verdict::of(&loaded, file.strict);
    if options.format == Format::Json {
        print(&format!("{:#}\n", as_json(&loaded, verdict)));
        return verdict.exit();
    }
    lifecycle::reload::say(&loaded.report);
    if let (Some(site), Some(config)) = (&options.print_effective, &loaded.config) {
        return match config::effective::print(config, site.as_deref()) {
            Ok(text) => {
                print(&text);
                verdict.exit()
            }
            Err(why) => {
                say(&format!("portcullis: {why}\n"));
                ExitCode::from(2)
            }
        };
    }
    say(&format!("{}: {}\n", file.config.display(), summary(&loaded)));
    verdict.exit()
}

/// What a check comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    InPart,
    Refused,
}

impl Verdict {
    fn of(loaded: &config::Loaded, strict: bool) -> Self {
        match &loaded.config {
            Some(_) if loaded.broken_sites.is_empty() => Verdict::Good,
            Some(_) if !strict => Verdict::InPart,
            Some(_) | None => Verdict::Refused,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::InPart => "in_part",
            Verdict::Refused => "refused",
        }
    }

    fn exit(self) -> ExitCode {
        match self {
            Verdict::Good => ExitCode::SUCCESS,
            Verdict::InPart => ExitCode::from(exit::IN_PART),
            Verdict::Refused => ExitCode::from(exit::CONFIG),
        }
    }
}

fn summary(loaded: &config::Loaded) -> String {
    let errors = loaded.report.count(Severity::Error);
    let warnings = loaded.report.count(Severity::Warning);
    let counts = format!("{} and {}", plural(errors, "error"), plural(warnings, "warning"));
    match &loaded.config {
        None => format!("refused, {counts}"),
        Some(_) if !loaded.broken_sites.is_empty() => format!("{counts}; left out: {}", loaded.broken_sites.join(", ")),
        Some(config) => {
            let counts = if warnings == 0 { String::new() } else { format!(", {}", plural(warnings, "warning")) };
            let tests: usize = config.sites.iter().map(|site| site.tests.len()).sum();
            let tests = if tests == 0 { String::new() } else { format!(", {} passed", plural(tests, "test")) };
            let (sites, users) = (plural(config.sites.len(), "site"), plural(config.users.len(), "user"));
            format!("good: {sites}, {}, {users}{tests}{counts}", plural(config.groups.len(), "backend group"))
        }
    }
}

fn as_json(loaded: &config::Loaded, verdict: Verdict) -> serde_json::Value {
    serde_json::json!({
        "result": verdict.as_str(),
        "broken_sites": loaded.broken_sites,
        "sites": loaded.config.as_ref().map(|config| config.sites.len()),
        "backend_groups": loaded.config.as_ref().map(|config| config.groups.len()),
        "users": loaded.config.as_ref().map(|config| config.users.len()),
        "diagnostics": admin::api::diagnostics(&loaded.report),
    })
}

pub(super) fn explain(options: Explain) -> ExitCode {
    // Without the sites' tests: why one of them fails is what this is asked for.
    let loaded = config::load(options.socket.main_file(), &Files::on_disk(), &config::Previous::default());
    let Some(config) = loaded.config else {
        lifecycle::reload::say(&loaded.report);
        say(&format!("{}: refused\n", options.socket.main_file().display()));
        return ExitCode::from(exit::CONFIG);
    };
    if !loaded.broken_sites.is_empty() {
        say(&format!("{}: left out because of their errors: {}\n", options.socket.main_file().display(), loaded.broken_sites.join(", ")));
    }
    let knowledge = if options.no_probe { Knowledge::None } else { Knowledge::Probe };
    let format = options.format;
    match Asked::files(config, knowledge).and_then(|asked| asked.explain(&options.question())) {
        Ok(explanation) => {
            match format {
                Format::Text => print(&explanation.render()),
                Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&explanation).unwrap_or_default())),
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            say(&format!("portcullis: {why}\n"));
            ExitCode::from(2)
        }
    }
}

pub(super) fn schema(options: &Schema) -> ExitCode {
    let kind = match options.files {
        SchemaFiles::Main => config::FileKind::Main,
        SchemaFiles::Site => config::FileKind::Site,
        SchemaFiles::Users => config::FileKind::Users,
    };
    if options.markdown {
        print(&config::reference());
    } else {
        print(&format!("{:#}\n", config::schema(kind)));
    }
    ExitCode::SUCCESS
}
