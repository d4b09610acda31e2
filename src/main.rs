//! The `mailboxqtt` command: settings, runtime, signals, exit code. Floor 6.

mod service;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use mailboxqtt::auth::{self, Credential, Form, StoredPassword, password_file};
use mailboxqtt::broker::{Broker, Handle};
use mailboxqtt::config::{self, AclCommand, Arguments, Change, Command, Explain, File, memory};
use mailboxqtt::net::health;
use mailboxqtt::store::is_panic_expected;
use tikv_jemallocator::Jemalloc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Gives memory back when a flood is over. The system's allocator kept 68 of 73 MiB that were free after a storm of
/// random traffic; see docs/decisions/0004.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Connecting, asking and being answered may take so long each.
const HEALTH_STEP_MAX: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    end_on_panic();
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        None => run(&arguments),
        Some(Command::ScramUser { name, iterations }) => scram_user(name, *iterations),
        Some(Command::Passwd { file, user, delete: true, .. }) => remove_user(file, user),
        Some(Command::Passwd { file, user, scram: true, .. }) => put_user(file, user, Form::Scram),
        Some(Command::Passwd { file, user, .. }) => put_user(file, user, Form::Argon2id),
        Some(Command::Import { file }) => import(file),
        Some(Command::Health { addr }) => health::check(*addr, HEALTH_STEP_MAX)
            .with_context(|| format!("no broker works at {addr}")),
        Some(Command::Acl(AclCommand::Explain(question))) => return explain(question),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mailboxqtt: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// Says what the rules say; the exit code says it, too.
fn explain(question: &Explain) -> ExitCode {
    let answer = || -> anyhow::Result<bool> {
        let arguments = Arguments { config: question.config.clone(), ..Arguments::default() };
        let authorisation = match &question.acl_file {
            Some(_) => config::Authorisation::default(),
            None => arguments.settings()?.file.authorisation,
        };
        let (is_allowed, sentence) = question.answer(&authorisation)?;
        print(&format!("{sentence}\n"))?;
        Ok(is_allowed)
    };
    match answer() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("mailboxqtt: {}", sentence(&error));
            ExitCode::from(2)
        }
    }
}

/// The error and what led to it, as far as it has not said that itself.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.contains(&cause) {
            sentence.extend([": ", &cause]);
        }
    }
    sentence
}

/// A panic is a bug, and a broker that has lost one of its tasks would only seem to serve.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_panic_expected() {
            report(panic);
            std::process::abort();
        }
    }));
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.settings()?;
    if arguments.print_config {
        return print(&config::print(&settings)?);
    }
    if arguments.check {
        // Warnings are a part of the answer.
        service::start_log(settings.file.log_format);
        settings.doubts.iter().for_each(|doubt| eprintln!("mailboxqtt: {doubt}"));
        settings.check(raise_open_file_limit())?;
        return print("mailboxqtt: the settings are in order\n");
    }
    service::start_log(settings.file.log_format);
    settings.doubts.iter().for_each(|doubt| warn!("{doubt}"));
    let files_max = raise_open_file_limit();
    let config = settings.check(files_max)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the worker threads")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let broker = Broker::bind(config)?.with_memory_in_use(memory::in_use);
        print(&greeting(&broker))?;
        let operator = Operator {
            arguments: arguments.clone(),
            files_max,
            in_force: settings.file,
            broker: broker.handle(),
        };
        let operator = tokio::spawn(operator.run(hangup));
        let shutdown = async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
            // Who says that the broker is ready again must not do so afterwards.
            operator.abort();
            let _ = operator.await;
            service::stopping();
        };
        Ok(broker.run(shutdown).await?)
    })
}

/// Reads the settings again whenever it is told to.
struct Operator {
    arguments: Arguments,
    files_max: usize,
    in_force: File,
    broker: Handle,
}

impl Operator {
    async fn run(mut self, mut hangup: Signal) {
        if !self.broker.serving().await {
            return;
        }
        service::ready();
        tokio::spawn(service::feed_watchdog());
        while hangup.recv().await.is_some() {
            service::reloading();
            match self.reload().await {
                Ok(Change { taken_over, needs_restart, in_force }) => {
                    self.in_force = in_force;
                    info!(changed = %list(&taken_over), "the settings and the files that they name have been read again");
                    if !needs_restart.is_empty() {
                        warn!(settings = %list(&needs_restart), "these settings need a restart");
                    }
                }
                Err(error) => {
                    error!(error = %sentence(&error), "the settings are not changed");
                }
            }
            service::ready();
        }
    }

    /// All or nothing.
    async fn reload(&self) -> anyhow::Result<Change> {
        let (arguments, files_max) = (self.arguments.clone(), self.files_max);
        let read = move || -> anyhow::Result<_> {
            let settings = arguments.settings()?;
            let config = settings.check(files_max)?;
            Ok((settings, config))
        };
        let (settings, config) = tokio::task::spawn_blocking(read).await??;
        settings.doubts.iter().for_each(|doubt| warn!("{doubt}"));
        let change = Change::between(&self.in_force, &settings.file)?;
        self.broker.replace(config).await?;
        Ok(change)
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no key".to_owned() } else { names.join(", ") }
}

/// Prints a settings file, and on standard error what is not in it.
fn import(path: &Path) -> anyhow::Result<()> {
    let imported = config::import(path)?;
    imported.left_out.iter().for_each(|left_out| eprintln!("{left_out}"));
    print(&imported.settings)
}

/// A line for each listener.
fn greeting(broker: &Broker) -> String {
    let (version, shards) = (env!("CARGO_PKG_VERSION"), broker.shards());
    let lines = broker.listening().enumerate().map(|(number, bound)| {
        let (listen, transport) = (bound.local(), bound.transport());
        match number {
            0 => {
                format!("mailboxqtt {version} listening on {listen} with {shards} router shards\n")
            }
            _ => format!("mailboxqtt {version} listening on {listen} over {transport}\n"),
        }
    });
    lines.collect()
}

/// Prints a line for the settings file; the password is nowhere but in the client's hands.
fn scram_user(name: &str, iterations: u32) -> anyhow::Result<()> {
    let name = auth::prepare(name).context("the user name")?;
    let credential = Credential::new(&read_password()?, iterations).context("the password")?;
    print(&toml::to_string(&BTreeMap::from([(name, credential.to_string())]))?)
}

/// Adds the user to a password file, or gives him another password.
fn put_user(file: &Path, user: &str, form: Form) -> anyhow::Result<()> {
    // A name or a file that cannot be is refused before anybody is asked for a password.
    password_file::with_user(&password_file::text(file)?, user, "").context("the user name")?;
    if form == Form::Scram {
        ensure!(
            auth::prepare(user).context("the user name")? == user,
            "the user name cannot be used with SCRAM"
        );
    }
    let hash = StoredPassword::hash(&read_password()?, form)?;
    // Somebody else may have changed it while the password was typed: who was removed must not come back.
    password_file::change(file, |text| Ok(password_file::with_user(text, user, &hash)?))
}

/// Removes the user from a password file.
fn remove_user(file: &Path, user: &str) -> anyhow::Result<()> {
    password_file::change(file, |text| {
        password_file::without_user(text, user).with_context(|| {
            format!("there is no user `{}` in {}", user.escape_debug(), file.display())
        })
    })
}

/// From the terminal without showing it, or the first line of what standard input is.
fn read_password() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        let password = rpassword::prompt_password("Password: ")?;
        let again = rpassword::prompt_password("Password again: ")?;
        ensure!(password == again, "the two passwords differ");
        return Ok(password);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the password")?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Each connection is an open file. Returns how many there may be.
fn raise_open_file_limit() -> usize {
    match rlimit::increase_nofile_limit(rlimit::INFINITY) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            warn!(%error, "cannot raise the open-file limit");
            rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(1024, |(soft, _)| soft as usize)
        }
    }
}

/// Writes to standard output; whoever reads it may have gone away, which is not our trouble.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
