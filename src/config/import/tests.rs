//! What becomes of each setting of a `mosquitto.conf`.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::{File, parse};

/// Imports `text`, which has to give a settings file. What becomes of messages without room is the same in all, and
/// left out here, and so is that nobody comes in unnamed where nothing was said of that.
fn imported(text: &str) -> (toml::Table, Vec<String>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.conf");
    fs::write(&path, text).unwrap();
    let Import { settings, left_out } = import(&path).unwrap();
    assert!(settings.contains("# mosquitto drops what comes when a queue is full\n"), "{settings}");
    let mut table = parse(&settings).unwrap_or_else(|mistake| panic!("{mistake}:\n{settings}"));
    let _: File = table.clone().try_into().unwrap();
    assert_eq!(table.remove("queue_policy"), Some("drop_newest".into()));
    let is_default =
        |line: &str| line.ends_with("# mosquitto refuses them where a listener is set up");
    if settings.lines().take_while(|line| !line.starts_with('[')).any(is_default) {
        assert_eq!(table.remove("allow_anonymous"), Some(false.into()), "{settings}");
    }
    let place = format!("{}:", path.display());
    (table, left_out.into_iter().map(|it| it.replace(&place, "")).collect())
}

fn settings(text: &str) -> String {
    let (table, left_out) = imported(text);
    assert_eq!(left_out, [""; 0], "{text}");
    table.to_string().trim().to_owned()
}

fn left_out(text: &str) -> Vec<String> {
    let (table, left_out) = imported(text);
    assert!(table.is_empty(), "{text}: {table}");
    left_out
}

#[test]
fn settings_of_the_whole_broker_are_taken_over() {
    for (theirs, ours) in [
        ("", ""),
        ("# comment\n\n  # another\n", ""),
        ("allow_anonymous true", "allow_anonymous = true"),
        ("allow_anonymous 0", "allow_anonymous = false"),
        ("persistence true", "durability = \"always\""),
        ("persistence false", "durability = \"none\""),
        ("max_inflight_messages 20", "inflight_max = 20"),
        ("max_inflight_messages 0", "inflight_max = 65535"),
        ("max_queued_messages   1000  ", "queue_messages_max = 1000"),
        ("max_queued_bytes 4096", "queue_bytes_max = 4096"),
        ("max_packet_size 65536", "packet_bytes_max = 65536"),
        ("max_keepalive 60", "keep_alive_s_max = 60"),
        ("max_keepalive 65535", "keep_alive_s_max = 0"),
        ("persistent_client_expiration 14d", "session_expiry_s_max = 1209600"),
        ("persistent_client_expiration 2m", "session_expiry_s_max = 5184000"),
        ("persistent_client_expiration 1y", "session_expiry_s_max = 31536000"),
        ("retain_available false", "retain_available = false"),
        ("sys_interval 30", "sys_interval_s = 30"),
        ("max_inflight_messages 20\nmax_inflight_messages 30", "inflight_max = 30"),
        ("set_tcp_nodelay true\nlog_dest stderr\nqueue_qos0_messages false", ""),
        ("max_topic_alias 5\nmax_inflight_bytes 0", "topic_alias_max = 5"),
    ] {
        assert_eq!(settings(theirs), ours, "{theirs}");
    }
}

#[test]
fn what_has_no_place_is_left_out_with_its_line_and_a_reason_and_without_its_value() {
    for (theirs, expected) in [
        ("\n\nlog_dest file /var/log/m.log", "3: log_dest: the log goes to standard error"),
        ("log_type all", "1: log_type: set RUST_LOG"),
        ("max_queued_messages 0", "1: max_queued_messages: everything has a limit"),
        ("max_queued_messages many", "1: max_queued_messages: is not a number"),
        ("max_keepalive 70000", "1: max_keepalive: `keep_alive_s_max` cannot be that: "),
        ("sys_interval 0", "1: sys_interval: $SYS is always published"),
        ("message_size_limit 100", "1: message_size_limit: there is a limit for packets"),
        ("set_tcp_nodelay false", "1: set_tcp_nodelay: TCP_NODELAY is always set"),
        ("auth_opt_pass hunter2", "1: auth_opt_pass: there are no plugins here"),
        ("remote_password hunter2", "1: remote_password: there are no bridges"),
        ("persistent_client_expiration 3", "1: persistent_client_expiration: is not"),
        ("max_topic_alias x", "1: max_topic_alias: is not a number"),
        ("allow_anonymous maybe", "1: allow_anonymous: is not true or false"),
        ("no_such_thing 1", "1: no_such_thing: there is nothing like it here"),
    ] {
        let left_out = imported(theirs).1.join("\n");
        assert!(left_out.contains(expected), "{theirs}: {left_out}");
        assert!(!left_out.contains("hunter2"), "{left_out}");
    }
}

#[test]
fn bridge_is_left_out_and_what_mosquitto_does_not_take_for_a_part_of_it_is_not() {
    let bridge = "connection cloud\naddress example.org\nbridge_cafile /ca\n";
    assert_eq!(left_out(bridge).len(), 3);
    // As mosquitto 2.0.11 was seen to do it: rules are for all, and a mount point for the listener before the bridge.
    let theirs = format!("listener 1 ::1\n{bridge}acl_file /a\nmount_point b/");
    let (table, left_out) = imported(&theirs);
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert_eq!(table["authorisation"]["acl_file"].as_str(), Some("/a"));
    assert_eq!(table["listeners"][0]["mount_point"].as_str(), Some("b/"));
}

#[test]
fn what_opens_the_broker_is_said_in_the_settings_too() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.conf");
    fs::write(&path, "log_type all\nuse_username_as_clientid true\n").unwrap();
    let Import { settings, left_out } = import(&path).unwrap();
    assert_eq!(left_out.len(), 2);
    assert!(settings.starts_with(&format!("# Left out: {}\n", left_out[1])), "{settings}");
    assert!(!settings.contains("log_type"), "{settings}");
}

#[test]
fn listeners_are_taken_over_with_what_was_said_of_each() {
    for (theirs, ours) in [
        (
            "listener 1884",
            "[[listeners]]\nlisten = \"0.0.0.0:1884\"\n\n[[listeners]]\nlisten = \"[::]:1884\"",
        ),
        ("listener 1884\nsocket_domain ipv6", "[[listeners]]\nlisten = \"[::]:1884\""),
        ("listener 1884 127.0.0.1", "[[listeners]]\nlisten = \"127.0.0.1:1884\""),
        ("listener 1884 ::1", "[[listeners]]\nlisten = \"[::1]:1884\""),
        ("listener 1884\nsocket_domain ipv4", "[[listeners]]\nlisten = \"0.0.0.0:1884\""),
        ("port 1885\nbind_address 10.0.0.1", "[[listeners]]\nlisten = \"10.0.0.1:1885\""),
        ("listener 0 /run/m.sock", "[[listeners]]\nlisten = \"unix:/run/m.sock\""),
        (
            "bind_address ::1\nmax_connections 5",
            "[[listeners]]\nconnections_max = 5\nlisten = \"[::1]:1883\"",
        ),
        ("listener 1 ::1\nmax_connections -1", "[[listeners]]\nlisten = \"[::1]:1\""),
        (
            "listener 1 ::1\nmount_point a/b/",
            "[[listeners]]\nlisten = \"[::1]:1\"\nmount_point = \"a/b/\"",
        ),
        (
            "listener 1884 localhost",
            "[[listeners]]\nlisten = \"127.0.0.1:1884\"\n\n[[listeners]]\nlisten = \"[::1]:1884\"",
        ),
        (
            "listener 9001 ::1\nprotocol websockets\nlistener 1884 ::1",
            "[[listeners]]\nlisten = \"[::1]:9001\"\nprotocol = \"websocket\"\nwebsocket_path = \"\"\n\n\
             [[listeners]]\nlisten = \"[::1]:1884\"",
        ),
        (
            "listener 8883 ::1\ncertfile /c.pem\nkeyfile /k.pem\ntls_version tlsv1.3\ncafile /ca.pem\n\
             crlfile /crl.pem\nrequire_certificate true\nuse_identity_as_username true",
            "[[listeners]]\ncertificate_file = \"/c.pem\"\nclient_ca_file = \"/ca.pem\"\n\
             client_certificates = \"required\"\nclient_crl_file = \"/crl.pem\"\nkey_file = \"/k.pem\"\n\
             listen = \"[::1]:8883\"\ntls_min = \"1.3\"\nuser_from_certificate = \"common_name\"",
        ),
        (
            "max_qos 1\nbind_address ::1\nlistener 1884 ::1\nmax_qos 0\nmax_topic_alias 3",
            "[[listeners]]\nlisten = \"[::1]:1883\"\nqos_max = 1\n\n[[listeners]]\nlisten = \"[::1]:1884\"\n\
             qos_max = 0\ntopic_alias_max = 3",
        ),
        ("acl_file /acl", "[authorisation]\nacl_file = \"/acl\""),
    ] {
        let (table, _) = imported(theirs);
        assert_eq!(table.to_string().trim(), ours, "{theirs}");
    }
}

#[test]
fn settings_per_listener_are_of_the_listener_and_rules_have_to_be_the_same() {
    let theirs = "per_listener_settings true\nlistener 1884 ::1\nallow_anonymous true\nacl_file /a\n\
                  listener 1885 ::1\npassword_file /users\nacl_file /a";
    let (table, left_out) = imported(theirs);
    assert_eq!(left_out, [""; 0]);
    let ours = "[authorisation]\nacl_file = \"/a\"\n\n\
                [[listeners]]\nallow_anonymous = true\nlisten = \"[::1]:1884\"\n\n\
                [[listeners]]\nallow_anonymous = false\nlisten = \"[::1]:1885\"\n\n\
                [listeners.authentication]\npassword_file = \"/users\"";
    assert_eq!(table.to_string().trim(), ours);

    let differ = theirs.replace("acl_file /a\nlistener", "acl_file /b\nlistener");
    let (table, left_out) = imported(&differ);
    let [rule] = &table["authorisation"]["rules"].as_array().unwrap()[..] else { panic!() };
    assert_eq!((rule["permission"].as_str(), rule["filter"].as_str()), (Some("deny"), Some("#")));
    assert_eq!(left_out.len(), 2);
    assert!(left_out.iter().all(|it| it.contains("acl_file: SECURITY")), "{left_out:?}");
    let (table, left_out) = imported(&theirs.replace("acl_file /a\nlistener", "listener"));
    assert_eq!(table["authorisation"]["acl_file"].as_str(), Some("/a"));
    assert!(left_out[0].contains("it is for all listeners here"), "{left_out:?}");
    // Without per_listener_settings they are for all, wherever they stand.
    let (table, _) = imported("listener 1884 ::1\nallow_anonymous true\npassword_file /users");
    assert_eq!(table["allow_anonymous"].as_bool(), Some(true));
    assert_eq!(table["authentication"]["password_file"].as_str(), Some("/users"));
}

/// What mosquitto 2.0.11 was seen to do with a client that says nothing of itself.
#[test]
fn anonymous_clients_are_refused_where_mosquitto_refuses_them() {
    let at_the_top = |theirs: &str| {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.conf");
        fs::write(&path, theirs).unwrap();
        let file: File = toml::from_str(&import(&path).unwrap().settings).unwrap();
        let own = file.listeners.first().and_then(|it| it.allow_anonymous);
        (file.allow_anonymous, own)
    };
    assert_eq!(at_the_top(""), (None, None));
    assert_eq!(at_the_top("listener 1884 ::1"), (Some(false), None));
    assert_eq!(at_the_top("listener 1884 ::1\nallow_anonymous false"), (Some(false), None));
    assert_eq!(at_the_top("listener 1884 ::1\nallow_anonymous maybe"), (Some(false), None));
    assert_eq!(at_the_top("listener 1884 ::1\nallow_anonymous true"), (Some(true), None));
    let per_listener = |rest: &str| at_the_top(&format!("per_listener_settings true\n{rest}"));
    assert_eq!(per_listener("listener 1884 ::1"), (None, Some(false)));
    assert_eq!(per_listener("allow_anonymous true\nlistener 1884 ::1"), (None, Some(false)));
    assert_eq!(per_listener("listener 1884 ::1\nallow_anonymous true"), (None, Some(true)));
    assert_eq!(per_listener("listener 1884 ::1\nallow_anonymous maybe"), (None, Some(false)));
    // There nobody is refused who comes from the same machine; whoever says it means it.
    assert_eq!(at_the_top("allow_anonymous false"), (Some(false), None));
    assert_eq!(per_listener("allow_anonymous false"), (Some(false), None));
}

#[test]
fn what_listeners_cannot_have_is_left_out_with_a_reason() {
    for (theirs, expected) in [
        ("listener 1 ::1\ncapath /certs", "2: capath: put all its certificates into one file"),
        ("listener 1 ::1\ncafile /ca", "2: cafile: means nothing without require_certificate"),
        ("listener 1 ::1\ntls_version tlsv1.1", "2: tls_version: TLS 1.2 is the oldest here"),
        ("listener 1 ::1\nciphers HIGH", "2: ciphers: all ciphers are strong"),
        ("listener 1 ::1\npsk_hint x", "2: psk_hint: SECURITY"),
        ("listener 1 ::1\nuse_subject_as_username true", "2: use_subject_as_username: SECURITY"),
        ("listener 1 ::1\nbind_interface lo", "2: bind_interface: SECURITY"),
        ("listener 1 ::1\nmax_qos many", "2: max_qos: is not a number"),
        ("listener 1\nmax_connections 5", "2: max_connections: each address of the listener"),
        ("listener 1 ::1\nmount_point a", "2: mount_point: SECURITY: without it clients here see"),
        ("listener 1 ::1\nprotocol websockets", "2: protocol: pages of other sites"),
        ("listener 70000", "1: listener: is not a port"),
        ("listener 0", "1: listener: port 0 needs the path of a Unix socket"),
        ("listener 1 ::1\nhttp_dir /www", "2: http_dir: no files are served here"),
    ] {
        let left_out = imported(theirs).1.join("\n");
        assert!(left_out.contains(expected), "{theirs}: {left_out}");
    }
}

#[test]
fn files_of_a_folder_are_read_in_order_and_where_they_are_included() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    let include = format!("sys_interval 1\ninclude_dir {}\n", folder.path().join("d").display());
    write("m.conf", &include);
    write("d/b.conf", "sys_interval 3\nlog_type all");
    write("d/A.conf", "sys_interval 2\nmax_keepalive 2");
    write("d/c.txt", "sys_interval 4");
    let import = import(&folder.path().join("m.conf")).unwrap();
    let words: Vec<&str> = import.settings.split_whitespace().collect();
    assert_eq!(words[..3], ["keep_alive_s_max", "=", "2"]);
    assert_eq!(words[5..8], ["sys_interval_s", "=", "3"]);
    assert!(import.left_out[0].contains("b.conf:2: log_type"), "{:?}", import.left_out);

    write("m.conf", "include_dir /nowhere");
    let error = super::import(&folder.path().join("m.conf")).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

/// What mosquitto 2.0.11 was seen to do: only some settings before the first `listener` open port 1883.
#[test]
fn listener_that_need_not_be_named_is_there_where_something_is_said_of_it() {
    let count = |text: &str| {
        let lines = lines_of(text);
        let mut listeners = vec![Listener::default()];
        for line in &lines {
            match line.name.as_str() {
                "listener" => listeners.push(Listener::named(line)),
                _ => assert!(listeners.last_mut().unwrap().take(line, Scope::All), "{text}"),
            }
        }
        Listener::join_unnamed(listeners).len()
    };
    assert_eq!(count(""), 1);
    assert_eq!(count("listener 1"), 1);
    for silent in ["max_topic_alias 3", "tls_version tlsv1.2", "protocol mqtt"] {
        assert_eq!(count(&format!("{silent}\nlistener 1")), 1, "{silent}");
    }
    for opening in ["max_connections 3", "port 1883", "protocol websockets", "max_qos 1"] {
        assert_eq!(count(&format!("{opening}\nlistener 1")), 2, "{opening}");
    }
}

fn lines_of(text: &str) -> Vec<Line> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.conf");
    fs::write(&path, text).unwrap();
    read(&path).unwrap()
}
