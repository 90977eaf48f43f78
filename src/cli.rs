//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config;
use crate::{app, demo};

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
    #[arg(short = 't', requires = "config")]
    test: bool,
    #[command(flatten)]
    file: Option<File>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy.
    Run(File),
    /// Reports every mistake in the configuration.
    Check(File),
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

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        match (self.command, self.file) {
            (Some(Command::Run(file)), _) => run(file),
            (Some(Command::Check(file)), _) => check(&file),
            (Some(Command::Demo(options)), _) => ended(demo::run(&options)),
            (None, Some(file)) if self.test => check(&file),
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

fn check(file: &File) -> ExitCode {
    use config::diagnostic::Severity;
    let loaded = config::load(&file.config, &config::Previous::default());
    crate::reload::report(&loaded);
    let errors = loaded.report.count(Severity::Error);
    let warnings = loaded.report.count(Severity::Warning);
    let counts = format!("{} and {}", plural(errors, "error"), plural(warnings, "warning"));
    match &loaded.config {
        None => {
            say(&format!("{}: refused, {counts}\n", file.config.display()));
            ExitCode::from(exit::CONFIG)
        }
        Some(_) if !loaded.broken_sites.is_empty() => {
            let code = if file.strict { exit::CONFIG } else { exit::IN_PART };
            say(&format!("{}: {counts}; left out: {}\n", file.config.display(), loaded.broken_sites.join(", ")));
            ExitCode::from(code)
        }
        Some(config) => {
            let counts = if warnings == 0 { String::new() } else { format!(", {}", plural(warnings, "warning")) };
            let sites = plural(config.sites.len(), "site");
            let users = plural(config.users.len(), "user");
            say(&format!("{}: good: {sites}, {}, {users}{counts}\n", file.config.display(), plural(config.groups.len(), "backend group")));
            ExitCode::SUCCESS
        }
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn say(text: &str) {
    use std::io::Write as _;
    // There is nowhere to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
