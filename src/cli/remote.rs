//! Commands that ask the running process through its admin socket.

#![expect(clippy::indexing_slicing, reason = "JSON that lacks a key has null there")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::told::{self, rows};
use super::{Explain, Format, exit, print, say};
use crate::admin::client;
use crate::config;
use crate::config::units::Time;
use crate::explain::Question;

// === What is asked ===

/// Where the running process is asked.
#[derive(Args, Clone, Debug)]
pub(super) struct Socket {
    /// The admin socket. Default: the one that the configuration names.
    #[arg(long, value_name = "PATH", env = "PORTCULLIS_SOCKET")]
    socket: Option<PathBuf>,
    /// The main configuration file, which names the socket.
    #[arg(short, long, value_name = "FILE", env = "PORTCULLIS_CONFIG", default_value = "/etc/portcullis/portcullis.yaml")]
    config: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct Reload {
    #[command(flatten)]
    socket: Socket,
    /// Lets a mistake in one site refuse everything.
    #[arg(long)]
    strict: bool,
    /// Ends sites whose files are gone, which go on in their last good version without it, and managed users tables without a file.
    #[arg(long)]
    prune: bool,
    /// Goes back to the former configuration after this time, unless `portcullis confirm` comes first.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Lists the configurations that were in force.
    History(History),
    /// Puts one of them in force again, the last different one unless told otherwise. The files stay as they are, and count again
    /// with the next reload.
    Rollback(Rollback),
}

#[derive(Args, Debug)]
pub(super) struct History {
    #[command(flatten)]
    socket: Socket,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Args, Debug)]
pub(super) struct Rollback {
    /// The generation, as `portcullis config history` tells it.
    generation: Option<u64>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Subcommand)]
pub(super) enum Users {
    /// Tells where the apps and roles of a user are.
    Get(UserNamed),
    /// Lists the users of a table.
    List(Listed),
    /// Places apps and roles of a user: `mail=node2`; `mail=` takes one away. A new user is added.
    Set(UserSet),
    /// Takes a user out of its table.
    Remove(UserNamed),
    /// Replaces a whole table, in one step, by the users of a file.
    Import(Import),
    /// Prints a table as a file that can be imported again.
    Export(Listed),
    /// Lists the managed tables with their versions.
    Tables(Socket),
}

#[derive(Args, Debug)]
pub(super) struct UserNamed {
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct Listed {
    /// The table. Default: the only one.
    #[arg(long)]
    table: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct UserSet {
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    user: String,
    /// `APP=GROUP` or `ROLE=GROUP`.
    #[arg(required = true, value_parser = placement)]
    placements: Vec<(String, Option<String>)>,
    /// The table that a new user is added to. Default: the only one.
    #[arg(long)]
    table: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct Import {
    /// A users file; `-` is standard input.
    file: PathBuf,
    /// The table. Default: the only one.
    #[arg(long)]
    table: Option<String>,
    /// Only if the table has this version. Default: the one that `users export` has written into the file.
    #[arg(long, conflicts_with = "force")]
    version: Option<u64>,
    /// Whatever the version: changes that were made meanwhile are lost.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Subcommand)]
pub(super) enum Backend {
    /// Lists backends with their health and what was said of them.
    List(BackendList),
    /// Lets clients that stick to a backend stay, and sends nobody else.
    Drain(BackendNamed),
    /// Sends nobody to a backend; clients that stick to it move.
    Disable(BackendNamed),
    /// Brings a backend back.
    Enable(BackendNamed),
}

#[derive(Args, Debug)]
pub(super) struct BackendList {
    /// Only this backend group.
    group: Option<String>,
    #[command(flatten)]
    socket: Socket,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Args, Debug)]
pub(super) struct BackendNamed {
    /// `GROUP/NAME`, as `portcullis backend list` tells them.
    backend: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct Switch {
    site: String,
    /// One of the site's `groups`.
    active: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct Upgrade {
    /// The new program. Default: what is now at the path that the running one was started by.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// How long the new process may take to get ready.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub(super) struct Status {
    #[command(flatten)]
    socket: Socket,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

fn duration(text: &str) -> Result<Duration, String> {
    Time::parse(text).map(|time| time.0)
}

fn placement(text: &str) -> Result<(String, Option<String>), String> {
    let (word, group) = text.split_once('=').ok_or("write `APP=GROUP`")?;
    Ok((word.to_owned(), Some(group.to_owned()).filter(|group| !group.is_empty())))
}

// === Asking ===

impl Socket {
    pub(super) fn path(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return socket.clone();
        }
        let configured = config::places::admin_socket(&self.config);
        configured.unwrap_or_else(|| PathBuf::from(config::check::ADMIN_SOCKET))
    }

    pub(super) fn main_file(&self) -> &Path {
        &self.config
    }

    /// Asks, and gives what was answered; what went wrong has been said.
    fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, ExitCode> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.ask_with(method, path, body)
    }

    fn ask_with(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, ExitCode> {
        match self.answer(method, path, body)? {
            (200..=299, answer) => Ok(answer),
            (status, problem) => {
                say(&format!("portcullis: {}\n", problem["detail"].as_str().unwrap_or("the process does not know what to say")));
                Err(ExitCode::from(failure(status)))
            }
        }
    }

    fn answer(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(u16, Value), ExitCode> {
        client::ask(&self.path(), method, path, body).map_err(|error| {
            say(&format!("portcullis: {error}\n"));
            if self.socket.is_none() && !self.config.is_file() {
                say(&format!(
                    "{} cannot be read, so this is the usual place; `-c FILE` or `--socket PATH` say another\n",
                    self.config.display()
                ));
            }
            ExitCode::from(exit::RUNTIME)
        })
    }
}

/// The exit status for an answer that is none.
fn failure(status: u16) -> u8 {
    if matches!(status, 404 | 422) { exit::USAGE } else { exit::RUNTIME }
}

fn done(result: Result<String, ExitCode>) -> ExitCode {
    match result {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// A name as a segment of a path or a value of a query.
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

// === Configurations ===

pub(super) fn reload(options: &Reload) -> ExitCode {
    let confirm = options.confirm.map(|time| time.as_secs());
    let body = json!({ "strict": options.strict, "prune": options.prune, "confirm_seconds": confirm });
    put_in_force(&options.socket, "/v1/reload", &body)
}

fn put_in_force(socket: &Socket, path: &str, body: &Value) -> ExitCode {
    let (status, answer) = match socket.answer(Method::POST, path, body.to_string().into_bytes()) {
        Ok(answer) => answer,
        Err(code) => return code,
    };
    let Some(result) = answer["result"].as_str() else {
        say(&format!("portcullis: {}\n", answer["detail"].as_str().unwrap_or("the process does not know what to say")));
        return ExitCode::from(failure(status));
    };
    say(answer["text"].as_str().unwrap_or_default());
    let generation = &answer["generation"];
    if result == "refused" {
        for broken in rows(&answer["broken_sites"]) {
            say(&format!("{}\n", broken["text"].as_str().unwrap_or_default()));
        }
        say(&format!("refused: generation {generation} stays in force\n"));
        return ExitCode::from(exit::CONFIG);
    }
    print(&told::in_force(&answer));
    if answer["is_kept"] == false {
        say("it could not be kept (the log tells why): after a restart there is no way back to it, and none to what it has changed\n");
    }
    for broken in rows(&answer["broken_sites"]) {
        say(&format!("{}\n", broken["text"].as_str().unwrap_or_default()));
    }
    if result == "in_part" { ExitCode::from(exit::IN_PART) } else { ExitCode::SUCCESS }
}

pub(super) fn confirm(socket: &Socket) -> ExitCode {
    let answer = socket.ask(Method::POST, "/v1/confirm", &Value::Null);
    done(answer.map(|answer| format!("generation {} is confirmed\n", answer["generation"])))
}

pub(super) fn config(command: &Config) -> ExitCode {
    match command {
        Config::Rollback(options) => put_in_force(&options.socket, "/v1/rollback", &json!({ "generation": options.generation })),
        Config::History(options) => done(options.socket.ask(Method::GET, "/v1/generations", &Value::Null).map(|answer| {
            if options.format == Format::Json {
                return format!("{answer:#}\n");
            }
            told::history(&answer)
        })),
    }
}

// === Users ===

pub(super) fn users(command: &Users) -> ExitCode {
    match command {
        Users::Get(named) => done(named.socket.ask(Method::GET, &user_path(&named.user), &Value::Null).map(|user| told::user(&user))),
        Users::Set(set) => {
            let placements: serde_json::Map<String, Value> =
                set.placements.iter().map(|(word, group)| (word.clone(), group.clone().map_or(Value::Null, Value::String))).collect();
            let body = json!({ "table": set.table, "placements": placements });
            done(set.socket.ask(Method::PATCH, &user_path(&set.user), &body).map(|user| {
                // A slip of the pen adds a user.
                let table = user["table"].as_str().unwrap_or_default();
                let added = if user["is_new"] == true { format!("`{}` is new in the table `{table}`\n", set.user) } else { String::new() };
                told::user(&user) + &added
            }))
        }
        Users::Remove(named) => {
            let answer = named.socket.ask(Method::DELETE, &user_path(&named.user), &Value::Null);
            done(answer.map(|user| format!("{} is removed from the table {}\n", named.user, user["table"].as_str().unwrap_or_default())))
        }
        Users::List(listed) => done(list(listed, told::user)),
        Users::Export(listed) => done(export(listed)),
        Users::Import(options) => done(import(options)),
        Users::Tables(socket) => done(socket.ask(Method::GET, "/v1/tables", &Value::Null).map(|answer| {
            let line = |table: &Value| {
                format!("{}  version {}, {} users\n", table["table"].as_str().unwrap_or_default(), table["version"], table["users"])
            };
            rows(&answer["tables"]).map(line).collect()
        })),
    }
}

fn user_path(user: &str) -> String {
    format!("/v1/users/{}", escaped(user))
}

/// All users of a table, page by page.
fn list(listed: &Listed, line: impl Fn(&Value) -> String) -> Result<String, ExitCode> {
    let (mut text, mut after) = (String::new(), String::new());
    loop {
        let table = listed.table.as_ref().map_or_else(String::new, |table| format!("&table={}", escaped(table)));
        let page = listed.socket.ask(Method::GET, &format!("/v1/users?after={}{table}", escaped(&after)), &Value::Null)?;
        text.extend(rows(&page["users"]).map(&line));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => return Ok(text),
        }
    }
}

/// The last line of an export: without it something is missing.
const END: &str = "# end";

fn export(listed: &Listed) -> Result<String, ExitCode> {
    let tables = listed.socket.ask(Method::GET, "/v1/tables", &Value::Null)?;
    let own = |table: &&Value| listed.table.as_deref().is_none_or(|name| table["table"] == name);
    let version = rows(&tables["tables"]).find(own).map(|table| format!("# version {}\n", table["version"])).unwrap_or_default();
    let users = list(listed, |user| {
        // JSON strings are YAML strings.
        format!("  {}: {}\n", user["user"], user["placements"])
    })?;
    Ok(format!("{version}users:\n{users}{END}\n"))
}

fn import(options: &Import) -> Result<String, ExitCode> {
    let failed = |error: std::io::Error| {
        say(&format!("portcullis: {}: {error}\n", options.file.display()));
        ExitCode::from(exit::RUNTIME)
    };
    let text = match options.file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()).map_err(failed)?,
        false => std::fs::read_to_string(&options.file).map_err(failed)?,
    };
    let written = || text.lines().next()?.strip_prefix("# version ")?.trim().parse::<u64>().ok();
    if written().is_some() && !options.force && !text.lines().any(|line| line == END) {
        say(&format!(
            "portcullis: {}: its last line, `{END}`, is missing: the export may have been cut short; `--force` takes it as it is\n",
            options.file.display()
        ));
        return Err(ExitCode::from(exit::USAGE));
    }
    let version = if options.force { None } else { options.version.or_else(written) };
    if version.is_none() && !options.force {
        say(
            "portcullis: which version of the table does the file replace? `--version N` says it (`portcullis users tables` tells them), `--force` replaces any\n",
        );
        return Err(ExitCode::from(exit::USAGE));
    }
    let table = options.table.as_deref().map_or_else(|| "-".to_owned(), escaped);
    let query = version.map_or_else(|| "force=true".to_owned(), |version| format!("version={version}"));
    let answer = options.socket.ask_with(Method::PUT, &format!("/v1/tables/{table}?{query}"), text.into_bytes())?;
    Ok(format!("table {} has version {} with {} users\n", answer["table"].as_str().unwrap_or_default(), answer["version"], answer["users"]))
}

// === Backends and sites ===

pub(super) fn backend(command: &Backend) -> ExitCode {
    let (named, state) = match command {
        Backend::List(options) => return done(backends(options)),
        Backend::Drain(named) => (named, "draining"),
        Backend::Disable(named) => (named, "disabled"),
        Backend::Enable(named) => (named, "enabled"),
    };
    // Names of backends may be addresses of sockets, with slashes; those of groups have none.
    let Some((group, name)) = named.backend.split_once('/').filter(|(group, name)| !group.is_empty() && !name.is_empty()) else {
        say("portcullis: write `GROUP/NAME`; `portcullis backend list` tells which there are\n");
        return ExitCode::from(exit::USAGE);
    };
    let path = format!("/v1/backends/{}/{}", escaped(group), escaped(name));
    let answer = named.socket.ask(Method::POST, &path, &json!({ "state": state }));
    done(answer.map(|answer| {
        warn(&answer);
        format!("{} is {state}\n", named.backend)
    }))
}

/// What was done, and may not have been meant.
fn warn(answer: &Value) {
    if let Some(warning) = answer["warning"].as_str() {
        say(&format!("portcullis: {warning}\n"));
    }
}

fn backends(options: &BackendList) -> Result<String, ExitCode> {
    let group = options.group.as_deref().map_or_else(String::new, |group| format!("/{}", escaped(group)));
    let answer = options.socket.ask(Method::GET, &format!("/v1/backends{group}"), &Value::Null)?;
    if options.format == Format::Json {
        return Ok(format!("{answer:#}\n"));
    }
    Ok(told::backends(&answer["backend_groups"], |_| true))
}

pub(super) fn switch(options: &Switch) -> ExitCode {
    let path = format!("/v1/sites/{}/switch", escaped(&options.site));
    let answer = options.socket.ask(Method::POST, &path, &json!({ "active": options.active }));
    done(answer.map(|answer| {
        warn(&answer);
        format!("site {}: {} is active, it was {}\n", options.site, options.active, answer["before"].as_str().unwrap_or_default())
    }))
}

// === The process ===

pub(super) fn upgrade(options: &Upgrade) -> ExitCode {
    let binary = options.binary.as_deref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let body = json!({ "binary": binary, "timeout_seconds": options.timeout.map(|time| time.as_secs().max(1)) });
    done(options.socket.ask(Method::POST, "/v1/upgrade", &body).map(|answer| format!("process {} has taken over\n", answer["pid"])))
}

pub(super) fn stop(socket: &Socket) -> ExitCode {
    done(socket.ask(Method::POST, "/v1/stop", &Value::Null).map(|_| "stopping: what is under way finishes first\n".to_owned()))
}

pub(super) fn status(options: &Status) -> ExitCode {
    let answer = match options.socket.ask(Method::GET, "/v1/status", &Value::Null) {
        Ok(answer) => answer,
        Err(code) => return code,
    };
    print(&if options.format == Format::Json { format!("{answer:#}\n") } else { told::status(&answer) });
    // What is in force in part only is told by the exit status too, as `reload` and `check` do.
    let missing = [&answer["sites"]["broken"], &answer["users_tables_out_of_force"]];
    if missing.into_iter().any(|missing| rows(missing).next().is_some()) { ExitCode::from(exit::IN_PART) } else { ExitCode::SUCCESS }
}

pub(super) fn explain(options: Explain) -> ExitCode {
    let (socket, format, from) = (options.socket.clone(), options.format, options.from);
    let Question { url, method, headers, cookies, sni, listener, .. } = options.question();
    let body = json!({
        "url": url,
        "method": method.as_str(),
        "headers": headers,
        "cookies": cookies,
        "from": from,
        "sni": sni,
        "listener": listener,
    });
    done(socket.ask(Method::POST, "/v1/explain", &body).map(|answer| match format {
        Format::Text => answer["text"].as_str().unwrap_or_default().to_owned(),
        Format::Json => format!("{:#}\n", answer["explanation"]),
    }))
}
