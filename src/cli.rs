//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::diagnostic::{Place, Severity};
use crate::load::load;
use crate::{app, config, demo, explain};

/// What the process ends with.
mod exit {
    /// Something failed while running.
    pub(super) const RUNTIME: u8 = 1;
    /// Sites with mistakes are left out, the rest is good.
    pub(super) const IN_PART: u8 = 3;
    /// The configuration is refused (`EX_CONFIG` of sysexits.h).
    pub(super) const CONFIG: u8 = 78;
}

/// Edge proxy that sends each domain, user and app to a healthy backend.
///
/// Exit status: 0 success, 1 failure while running, 2 wrong usage, 3 some sites have errors and are left out, 78 the
/// configuration is refused.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Checks the configuration, as `check` does.
    #[arg(short = 't')]
    test: bool,
    #[command(flatten)]
    file: Option<File>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy.
    Run(File),
    /// Reports every mistake in the configuration and runs the tests of its sites.
    Check(Check),
    /// Tells what becomes of a request, and why.
    Explain(Explain),
    /// Prints the JSON Schema of the configuration files.
    Schema(Schema),
    /// Runs a demonstration with its own backends, domains and certificate.
    Demo(demo::Options),
}

#[derive(Args, Debug)]
struct File {
    /// The main configuration file.
    #[arg(short, long, value_name = "FILE", env = "PORTCULLIS_CONFIG", default_value = "/etc/portcullis/portcullis.yaml")]
    config: PathBuf,
    /// Lets a mistake in one site refuse everything.
    #[arg(long)]
    strict: bool,
}

impl File {
    /// What is used when nothing is said.
    fn standard() -> Self {
        match Cli::parse_from(["portcullis", "run"]).command {
            Some(Command::Run(file)) => file,
            _ => File { config: PathBuf::from("/etc/portcullis/portcullis.yaml"), strict: false },
        }
    }
}

#[derive(Args, Debug)]
struct Check {
    #[command(flatten)]
    file: File,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Prints the configuration with all defaults filled in and secrets hidden: all of it, or one site.
    #[arg(long, value_name = "SITE", num_args = 0..=1, conflicts_with = "format")]
    print_effective: Option<Option<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Args, Debug)]
struct Explain {
    /// What would be asked for: `https://shop.example.com/cart?x=1`.
    url: String,
    #[arg(short = 'X', long, default_value = "GET")]
    method: http::Method,
    /// A header of the request, `Name: value`; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// A cookie of the request, `name=value`; may be given several times.
    #[arg(short = 'b', long = "cookie", value_name = "COOKIE")]
    cookies: Vec<String>,
    /// The address that the connection comes from.
    #[arg(long, value_name = "ADDRESS", default_value = "192.0.2.1")]
    from: IpAddr,
    /// The name in the TLS handshake. Default: the URL's host.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The listener, by name. Default: the first one that takes the URL's scheme for the site.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Does not ask the backends how they are.
    #[arg(long)]
    no_probe: bool,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The main configuration file.
    #[arg(short, long, value_name = "FILE", env = "PORTCULLIS_CONFIG", default_value = "/etc/portcullis/portcullis.yaml")]
    config: PathBuf,
}

#[derive(Args, Debug)]
struct Schema {
    /// Which files it is for.
    #[arg(value_enum, default_value_t = Files::Main)]
    files: Files,
    /// Prints the reference page in Markdown instead, made from the same descriptions.
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Files {
    Main,
    Site,
    Users,
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        match (self.command, self.file) {
            (Some(Command::Run(file)), _) => run(file),
            (Some(Command::Check(options)), _) => check(&options),
            (Some(Command::Explain(options)), _) => explain(options),
            (Some(Command::Schema(options)), _) => schema(&options),
            (Some(Command::Demo(options)), _) => ended(demo::run(&options)),
            (None, file) if self.test => {
                let file = file.unwrap_or_else(File::standard);
                check(&Check { file, format: Format::Text, print_effective: None })
            }
            (None, _) => {
                use clap::CommandFactory as _;
                let _ = Cli::command().print_help();
                ExitCode::from(2)
            }
        }
    }
}

fn run(file: File) -> ExitCode {
    crate::observe::events::init();
    ended(app::run(app::Options { config: file.config, strict: file.strict, on_ready: None }))
}

fn ended(result: Result<(), app::Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("portcullis: {failure}\n"));
            ExitCode::from(if matches!(failure, app::Failure::Config) { exit::CONFIG } else { exit::RUNTIME })
        }
    }
}

fn check(options: &Check) -> ExitCode {
    let file = &options.file;
    let loaded = load(&file.config, &config::Previous::default());
    let verdict = Verdict::of(&loaded, file.strict);
    if options.format == Format::Json {
        print(&format!("{:#}\n", as_json(&loaded, verdict)));
        return verdict.exit();
    }
    crate::reload::report(&loaded);
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
    let place = |place: &Place| {
        let (line, column) = place.line_and_column();
        serde_json::json!({ "file": place.source.path, "line": line, "column": column })
    };
    let diagnostics = loaded.report.iter().map(|diagnostic| {
        serde_json::json!({
            "severity": if diagnostic.severity == Severity::Error { "error" } else { "warning" },
            "message": diagnostic.message,
            "place": diagnostic.place.as_ref().map(place),
            "related": diagnostic.related.as_ref().map(|(at, label)| serde_json::json!({ "message": label, "place": place(at) })),
            "help": diagnostic.help,
        })
    });
    serde_json::json!({
        "result": verdict.as_str(),
        "broken_sites": loaded.broken_sites,
        "sites": loaded.config.as_ref().map(|config| config.sites.len()),
        "backend_groups": loaded.config.as_ref().map(|config| config.groups.len()),
        "users": loaded.config.as_ref().map(|config| config.users.len()),
        "diagnostics": diagnostics.collect::<Vec<_>>(),
    })
}

fn explain(options: Explain) -> ExitCode {
    // Without the sites' tests: why one of them fails is what this is asked for.
    let loaded = config::load(&options.config, &config::Previous::default());
    let Some(config) = loaded.config else {
        crate::reload::report(&loaded);
        say(&format!("{}: refused\n", options.config.display()));
        return ExitCode::from(exit::CONFIG);
    };
    if !loaded.broken_sites.is_empty() {
        say(&format!("{}: left out because of their errors: {}\n", options.config.display(), loaded.broken_sites.join(", ")));
    }
    let Explain { url, method, headers, cookies, from, sni, listener, no_probe, format, .. } = options;
    // Methods are case-sensitive, people are not.
    let method = method.as_str().to_ascii_uppercase().parse().unwrap_or(method);
    let question = explain::Question { url, method, headers, cookies, from, sni, listener, probe: !no_probe };
    match explain::explain(config, &question) {
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

fn schema(options: &Schema) -> ExitCode {
    let kind = match options.files {
        Files::Main => config::FileKind::Main,
        Files::Site => config::FileKind::Site,
        Files::Users => config::FileKind::Users,
    };
    if options.markdown {
        print(&config::reference());
    } else {
        print(&format!("{:#}\n", config::schema(kind)));
    }
    ExitCode::SUCCESS
}

fn print(text: &str) {
    use std::io::Write as _;
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn say(text: &str) {
    use std::io::Write as _;
    // There is nowhere to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
