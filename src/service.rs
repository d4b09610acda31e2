//! What a service manager wants of a broker: a log that it can keep, and news of how it is. Floor 6, called by
//! `main`.
//!
//! The log goes to standard error. Where that is systemd's journal, each line begins with its priority and has no
//! time, because the journal adds one. News go to the socket that `NOTIFY_SOCKET` names, and nowhere without it.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use mailboxqtt::config::LogFormat;
use sd_notify::NotifyState;
use tracing::{Event, Level, Subscriber, debug, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::registry::LookupSpan;

/// Starts the log: what `RUST_LOG` says, `info` without it.
pub(crate) fn start_log(log_format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text if is_journal(&io::stderr()) => {
            let plain = format().without_time().with_ansi(false);
            log.with_ansi(false).event_format(Prioritised(plain)).init();
        }
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
}

/// Whether what is written there goes to systemd's journal: `JOURNAL_STREAM` holds its device and inode.
fn is_journal(stream: &impl AsFd) -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let file = stream.as_fd().try_clone_to_owned().map(File::from);
    let metadata = file.and_then(|file| file.metadata());
    metadata.is_ok_and(|it| format!("{}:{}", it.dev(), it.ino()) == named)
}

/// Puts the priority in front of each line, in the form of sd-daemon(3).
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// Clients are served.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The settings are read again, until [`ready`].
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot read the clock for the service manager"),
    }
}

/// The broker ends.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Shows the service manager's watchdog at half its interval that the runtime still takes up tasks. Ends at once
/// if there is none.
pub(crate) async fn feed_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|it| !it.is_zero()) else { return };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        // Through the queue of the runtime: if its threads are stuck, nobody comes to run it.
        if tokio::spawn(async {}).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        warn!(%error, "cannot tell the service manager");
    }
}
