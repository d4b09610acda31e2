//! The settings as an operator meets them: file, environment and arguments, and what the command says of them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::broker::Broker;
use crate::process::{Process, unique};
use crate::wire::{Hello, VERSIONS};

#[test]
fn printed_settings_are_a_settings_file() {
    let folder = Folder::new();
    let printed = says(command().args(["--print-config", "--shards", "3"]));
    assert!(printed.contains("shards = 3 "), "{printed}");
    let path = folder.write("printed.toml", &printed);
    let again = says(command().args(["--print-config", "--config"]).arg(&path));
    assert_eq!(values(&again), values(&printed));

    let broker = Broker::start_with(&["--config", path.to_str().unwrap()]);
    for version in VERSIONS {
        Hello::new(version, &unique("printed")).open(broker.addr()).0.disconnect();
    }
    broker.stop();
}

#[test]
fn printed_settings_say_of_each_value_which_layer_it_is_from() {
    let folder = Folder::new();
    let text = "shards = 1\ninflight_max = 1\nreceive_max = 1";
    let path = folder.write("f.toml", text);
    let mut command = command();
    command.env("MAILBOXQTT_INFLIGHT_MAX", "2").env("MAILBOXQTT_SHARDS", "2");
    command.env("SOCKET_ADDR", "127.0.0.2:0");
    command.args(["--print-config", "--shards", "3", "--config"]).arg(&path);
    let printed = says(&mut command);
    let file = format!("receive_max = 1 # file {}", path.display());
    for line in [
        "listen = \"127.0.0.2:0\" # environment SOCKET_ADDR",
        "shards = 3 # argument --shards",
        "inflight_max = 2 # environment MAILBOXQTT_INFLIGHT_MAX",
        &file,
        "qos_max = 2 # default",
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(printed.lines().any(|printed| words(printed) == line), "{line}:\n{printed}");
    }
}

#[test]
fn credentials_are_not_printed() {
    let folder = Folder::new();
    let path = folder.write("users.toml", &format!("[scram_users]\nalice = \"{CREDENTIAL}\""));
    let printed = says(command().args(["--print-config", "--config"]).arg(&path));
    assert!(printed.contains("# alice is not shown"), "{printed}");
    assert!(!printed.contains("SCRAM-SHA-256$"), "{printed}");
}

#[test]
fn check_says_that_the_settings_are_in_order_and_serves_nobody() {
    let folder = Folder::new();
    let path = folder.write("good.toml", "inflight_max = 7");
    let said = says(command().args(["--check", "--config"]).arg(&path));
    assert_eq!(said, "mailboxqtt: the settings are in order");
}

#[test]
fn check_fails_with_one_sentence_that_names_the_place() {
    let folder = Folder::new();
    for (text, named) in [
        ("shards = 1\nqueue_max_bytes = 1", "line 2: there is no setting `queue_max_bytes`"),
        ("shards = 1\nqueue_max_bytes = 1", "did you mean `queue_bytes_max`?"),
        ("[[durability_overrides]]\nfiltre = 'a'", "`durability_overrides.filter`?"),
        ("shards = \"two\"", "line 1, `shards`: must be a whole number"),
        ("shards = 1 = 2", "line 1"),
        ("inflight_max = 0", "`inflight_max` must be at least 1"),
        ("listen = \"0.0.0.0:0\"", "--allow-anonymous"),
        ("[scram_users]\nbob = \"hunter2\"", "the value of `bob` is not"),
    ] {
        let path = folder.write("bad.toml", text);
        let said = fails(command().args(["--check", "--config"]).arg(&path));
        assert!(said.contains(named), "{text:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        // And serving says the same.
        assert_eq!(fails(command().arg("--config").arg(&path)), said);
    }
}

#[test]
fn check_of_a_wrong_environment_fails_and_a_doubtful_one_is_doubted() {
    let said = fails(command().arg("--check").env("MAILBOXQTT_QOS_MAX", "high"));
    assert!(said.contains("MAILBOXQTT_QOS_MAX"), "{said}");

    let mut doubtful = command();
    doubtful.arg("--check").env("MAILBOXQTT_QUEUE_BYTE_MAX", "9");
    let (status, _, said) = Process::spawn(&mut doubtful).finish_with_stderr();
    assert!(status.success(), "{said}");
    assert!(said.contains("is MAILBOXQTT_QUEUE_BYTES_MAX meant?"), "{said}");
}

#[test]
fn settings_file_may_be_named_in_the_environment() {
    let folder = Folder::new();
    let path = folder.write("f.toml", "shards = 3");
    let printed = says(command().arg("--print-config").env("MAILBOXQTT_CONFIG", path));
    assert!(printed.contains("shards = 3 "), "{printed}");
}

#[test]
fn imported_settings_are_in_order_and_what_is_left_out_is_said_by_line() {
    let folder = Folder::new();
    let dir = folder.write("extra.conf", "max_keepalive 60\n").parent().unwrap().to_owned();
    let theirs = format!(
        "# a comment\npersistence false\nlog_dest file /var/log/m.log\nallow_anonymous true\n\
         listener 0 {}\ninclude_dir {}\n",
        folder.0.path().join("m.sock").display(),
        dir.display()
    );
    let file = folder.write("mosquitto", &theirs);
    let (status, lines, said) =
        Process::spawn(command().arg("import").arg(&file)).finish_with_stderr();
    assert!(status.success(), "{said}");
    assert_eq!(
        said,
        format!(
            "{}:3: log_dest: the log goes to standard error, which a service manager keeps\n",
            file.display()
        )
    );
    let ours = folder.write("imported.toml", &lines.join("\n"));
    assert!(says(command().args(["--check", "--config"]).arg(&ours)).contains("in order"));
    let printed = says(command().args(["--print-config", "--config"]).arg(&ours));
    assert_eq!(values(&printed)["keep_alive_s_max"].as_integer(), Some(60));
    assert_eq!(values(&printed)["queue_policy"].as_str(), Some("drop_newest"));
    assert_eq!(values(&printed)["listeners"].as_array().unwrap().len(), 1);

    let said = fails(command().args(["import", "/nowhere/mosquitto.conf"]));
    assert!(said.contains("/nowhere/mosquitto.conf"), "{said}");
}

#[test]
fn users_of_each_listener_are_imported_and_mount_points_that_can_be() {
    let folder = Folder::new();
    let socket = |name: &str| folder.0.path().join(name).display().to_string();
    let users = folder.write("users", "");
    let theirs = format!(
        "per_listener_settings true\npersistence false\nlistener 0 {}\npassword_file {}\nmount_point a/\n\
         max_qos 1\nlistener 0 {}\nallow_anonymous true\nmount_point b\n",
        socket("one"),
        users.display(),
        socket("two")
    );
    let file = folder.write("mosquitto", &theirs);
    let (status, lines, said) =
        Process::spawn(command().arg("import").arg(&file)).finish_with_stderr();
    assert!(status.success(), "{said}");
    assert!(said.contains(":9: mount_point: SECURITY") && said.lines().count() == 1, "{said}");
    let ours = folder.write("imported.toml", &lines.join("\n"));
    assert!(says(command().args(["--check", "--config"]).arg(&ours)).contains("in order"));
    let printed = says(command().args(["--print-config", "--config"]).arg(&ours));
    let values = values(&printed);
    let [one, two] = &values["listeners"].as_array().unwrap()[..] else { panic!("{printed}") };
    assert_eq!(one["authentication"]["password_file"].as_str(), users.to_str());
    assert_eq!((one["mount_point"].as_str(), one["qos_max"].as_integer()), (Some("a/"), Some(1)));
    assert_eq!(one["allow_anonymous"].as_bool(), Some(false));
    assert_eq!(two["allow_anonymous"].as_bool(), Some(true));
    assert!(two.get("authentication").is_none(), "{printed}");
}

#[test]
fn what_is_wrong_in_the_section_of_a_listener_is_named_with_it() {
    let folder = Folder::new();
    let check = |own: &str| {
        let text =
            format!("[[listeners]]\nlisten = '127.0.0.1:0'\n[listeners.authentication]\n{own}");
        fails(command().args(["--check", "--config"]).arg(folder.write("own.toml", &text)))
    };
    for (own, named) in [
        (
            "checks_max = 1",
            "line 4: there is no setting `listeners.authentication.checks_max`, did you mean `authentication.checks_max`?",
        ),
        ("password_file = 3", "line 4, `listeners.authentication.password_file`: must be text"),
        (
            "password_file = '/nowhere'",
            "listener 127.0.0.1:0: setting `authentication.password_file`",
        ),
        ("", "listener 127.0.0.1:0: `authentication` of its own needs"),
        ("http.url = 'x?hunter2'", "listener 127.0.0.1:0: setting `authentication.http.url`"),
    ] {
        let said = check(own);
        assert!(said.contains(named) && !said.contains("hunter2"), "{own}: {said}");
    }
}

/// A form that is read; of no password that anybody knows.
const CREDENTIAL: &str = "SCRAM-SHA-256$4096:CdYjP6cN1/wAhYq14/XWuQ==$\
    Tf4P0MA9j1/AZZn21GMBC4k2CocaTzOIb3Vkb8b27w8=:eElIGnaevPodHktS1K9eSqPdEZWekqLz8gIDiduTo90=";

/// A folder for settings files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// The command without the settings of whoever runs the tests, and without data.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("MAILBOXQTT_") || name == "SOCKET_ADDR" {
            command.env_remove(&*name);
        }
    }
    command.env("MAILBOXQTT_DURABILITY", "none").stdin(Stdio::null());
    command
}

/// Runs `command`, which has to succeed; returns what it said.
fn says(command: &mut Command) -> String {
    Process::spawn(command).succeed().join("\n")
}

/// Runs `command`, which has to end with exit code 1 and nothing on standard output; returns what it
/// said on standard error.
fn fails(command: &mut Command) -> String {
    let (status, lines, said) = Process::spawn(command).finish_with_stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(lines.is_empty(), "{lines:?}");
    said
}

/// What is printed, without the comments.
fn values(printed: &str) -> toml::Table {
    printed.parse().unwrap()
}
