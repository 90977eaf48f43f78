//! The command line: what can be asked for. `local` answers from the files, `remote` asks the running process and
//! `told` writes down for people what that says.

mod local;
mod remote;
mod told;
mod track;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::explain::Question;
use crate::lifecycle::begin;
use crate::{app, demo};

/// What the process ends with.
mod exit {
    /// Something failed while running.
    pub(super) const RUNTIME: u8 = 1;
    /// What was asked for cannot be, whoever is asked.
    pub(super) const USAGE: u8 = 2;
    /// Sites with mistakes are left out or stay as they were, the rest is good.
    pub(super) const IN_PART: u8 = 3;
    /// The configuration is refused (`EX_CONFIG` of sysexits.h).
    pub(super) const CONFIG: u8 = 78;
}

/// Edge proxy that sends each domain, user and app to a healthy backend.
///
/// Exit status: 0 success, 1 failure while running, 2 wrong usage, 3 some sites have errors and are left out or stay as they
/// were, 78 the configuration is refused.
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
    /// Puts the files in force, and tells what changed or what is wrong with them.
    Reload(remote::Reload),
    /// Keeps a configuration that `reload --confirm` has put in force.
    Confirm(remote::Socket),
    /// Configurations that were in force, and the way back to them.
    #[command(subcommand)]
    Config(remote::Config),
    /// Managed users tables.
    #[command(subcommand)]
    Users(remote::Users),
    /// Takes backends out and brings them back.
    #[command(subcommand)]
    Backend(remote::Backend),
    /// Sends the requests of a site to another of its `groups`.
    Switch(remote::Switch),
    /// Lets a new process take over, with the same sockets: a new binary, or what a reload cannot change.
    Upgrade(remote::Upgrade),
    /// Lets the process finish what is under way and end.
    Stop(remote::Socket),
    /// Tells how the process is.
    Status(remote::Status),
    /// Tells whether clients should be sent here: exit status 0 when ready.
    Health(track::Health),
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
    /// Asks the running process instead of the files: with its managed users, its switches, its backends as it sees them, and the
    /// last good versions of broken sites.
    #[arg(long, conflicts_with = "no_probe")]
    live: bool,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    socket: remote::Socket,
}

impl Explain {
    fn question(self) -> Question {
        let Self { url, method, headers, cookies, from, sni, listener, .. } = self;
        // Methods are case-sensitive, people are not.
        let method = method.as_str().to_ascii_uppercase().parse().unwrap_or(method);
        Question { url, method, headers, cookies, from, sni, listener }
    }
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
            (Some(Command::Check(options)), _) => local::check(&options),
            (Some(Command::Explain(options)), _) if options.live => remote::explain(options),
            (Some(Command::Explain(options)), _) => local::explain(options),
            (Some(Command::Schema(options)), _) => local::schema(&options),
            (Some(Command::Reload(options)), _) => remote::reload(&options),
            (Some(Command::Confirm(socket)), _) => remote::confirm(&socket),
            (Some(Command::Config(command)), _) => remote::config(&command),
            (Some(Command::Users(command)), _) => remote::users(&command),
            (Some(Command::Backend(command)), _) => remote::backend(&command),
            (Some(Command::Switch(options)), _) => remote::switch(&options),
            (Some(Command::Upgrade(options)), _) => remote::upgrade(&options),
            (Some(Command::Stop(socket)), _) => remote::stop(&socket),
            (Some(Command::Status(options)), _) => remote::status(&options),
            (Some(Command::Health(options)), _) => track::health(&options),
            (Some(Command::Demo(options)), _) => ended(demo::run(&options)),
            (None, file) if self.test => {
                let file = file.unwrap_or_else(File::standard);
                local::check(&Check { file, format: Format::Text, print_effective: None })
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
            ExitCode::from(if matches!(failure, app::Failure::Begin(begin::Error::Config(_))) { exit::CONFIG } else { exit::RUNTIME })
        }
    }
}

/// Prints what was asked for. What cannot be written ends the command: an export on a full disk is none.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            say(&format!("portcullis: the output cannot be written: {error}\n"));
            std::process::exit(exit::RUNTIME.into());
        }
        _ => {}
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
