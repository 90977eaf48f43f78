//! The JSON Schema of the configuration files, and the reference page: both from the descriptions of the raw types.

use std::fmt::Write as _;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{Main, NOT_IN_THIS_VERSION, Site, Users};

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Main,
    Site,
    Users,
}

/// The schema of one kind of file, in draft-07: what the YAML language server knows best.
pub fn schema(kind: Kind) -> Value {
    match kind {
        Kind::Main => draft7::<Main>("portcullis main file"),
        Kind::Site => draft7::<Site>("portcullis site file"),
        Kind::Users => draft7::<Users>("portcullis users file"),
    }
}

fn draft7<T: JsonSchema>(title: &str) -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<T>().to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("title".to_owned(), title.into());
    }
    schema
}

/// The reference page: every key of every mapping, in the words of the schema.
pub fn reference() -> String {
    let mut page = String::from(
        "# Reference\n\nEvery key of every file. This page is made from the descriptions in the schema (`portcullis schema`); \
         [the tour](../README.md) shows how they are used.\n\nDurations have units (`500ms`, `5s`, `1h30m`, `1d`, `1y`), and so have \
         sizes (`64KiB`, `10m`; `k`, `m`, `g` are binary). Files are relative to the file that names them. `${env:NAME}` and \
         `${file:PATH}` are filled in when a file is read; `$${` is a literal `${`. Unknown keys and keys that are given twice are \
         errors.\n",
    );
    let mut told: Vec<String> = Vec::new();
    for (kind, heading) in [(Kind::Main, "The main file"), (Kind::Site, "A site file"), (Kind::Users, "A users file")] {
        let schema = schema(kind);
        section(&mut page, 2, heading, &schema);
        let definitions = schema.get("definitions").and_then(Value::as_object);
        for (name, definition) in definitions.into_iter().flatten() {
            if !told.contains(name) && definition.get("properties").is_some() {
                told.push(name.clone());
                section(&mut page, 3, &spaced(name), definition);
            }
        }
    }
    let _ = writeln!(page, "\n## Values of a request\n\n{}", super::super::super::rewrite::template::REFERENCE);
    page.push_str(ROUTING);
    let later: Vec<String> = NOT_IN_THIS_VERSION.iter().map(|key| format!("`{key}`")).collect();
    let _ = writeln!(page, "\n## Not in this version\n\nThese keys are known and refused: {}.", later.join(", "));
    page
}

const ROUTING: &str = "
## Which route answers

The order of the routes in the file does not matter, but for regexes. Of the routes whose path matches:

1. an exact path (`=/login`) comes first,
2. then the longest prefix other than `/`; segment by segment a literal beats a capture. Other than in nginx a prefix comes before a regex,
3. then regexes, in the order of the file,
4. then `/`.

Of routes for the same path the one that names `methods` comes first, then the one with more `headers` and `cookies`, then the one with
more of the `query`, then the one with a `scheme`. The first one whose conditions hold answers; what none takes goes to the site's
`group` or `backends`. Two routes that tie are an error, and so is a regex that can never win. What `X-Forwarded-*` and their like say is
no condition and no value unless their sender is one of `trusted_proxies`.

A plain request of a site with `https_redirect` is redirected, unless the route that would answer says `scheme: http`; so is a request
for `/.well-known/acme-challenge/` never.

## What is added

Backends get `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`, `-Prefix` (with `strip`), `X-Real-IP`, `X-Request-Id` and `Via`; clients get
`Via` with what comes from a backend, `X-Request-Id` with answers of our own, and no `Server` of ours. `remove` takes any of them away.
";

fn section(page: &mut String, level: usize, heading: &str, schema: &Value) {
    let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let hashes = "#".repeat(level);
    let _ = writeln!(page, "\n{hashes} {heading}\n\n{}\n\n| key | form | |\n|---|---|---|", one_line(description));
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let text = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let must = if required.contains(&key.as_str()) { " **required**" } else { "" };
        let _ = writeln!(page, "| `{key}` | {}{must} | {} |", form(property), one_line(text).replace('|', "\\|"));
    }
}

/// What a value looks like, in a few words.
fn form(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.rsplit('/').next()) {
        let heading = spaced(name);
        return format!("[{}](#{})", heading.to_lowercase(), heading.to_lowercase().replace(' ', "-"));
    }
    for many in ["anyOf", "allOf", "oneOf"] {
        if let Some(forms) = schema.get(many).and_then(Value::as_array) {
            let mut forms: Vec<String> = forms.iter().map(form).filter(|form| !form.is_empty()).collect();
            forms.dedup();
            return forms.join(" or ");
        }
    }
    let pattern = schema.get("pattern").and_then(Value::as_str).unwrap_or_default();
    if pattern.contains("ms|s|m") {
        return "duration".to_owned();
    }
    if pattern.contains("[bB]") {
        return if pattern.contains("off") { "size or `off`" } else { "size" }.to_owned();
    }
    let names: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return schema.get("const").map(|only| format!("`{only}`")).unwrap_or_default(),
    };
    let names = names.into_iter().filter(|name| *name != "null").map(|name| match name {
        "array" => format!("list of {}", schema.get("items").map(form).unwrap_or_default()),
        "object" => format!("mapping to {}", schema.get("additionalProperties").map(form).unwrap_or_default()),
        "boolean" => "switch".to_owned(),
        "integer" | "number" => "number".to_owned(),
        "string" => "text".to_owned(),
        other => other.to_owned(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// `HealthCheck` as `Health check`.
fn spaced(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_ascii_uppercase() {
            out.push(' ');
            out.push(letter.to_ascii_lowercase());
        } else {
            out.push(letter);
        }
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
