//! JSON Web Tokens in place of passwords, over a socket. What makes a token good or bad is tested below `auth::token`.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello};

pub(crate) const SECRET: &[u8] = b"a secret of more than 32 bytes, as it has to be";

/// A broker that takes tokens signed with [`SECRET`], with more settings of their section.
fn broker(settings: &str) -> Broker {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, SECRET).unwrap();
    // It has read the file when it serves.
    let section = format!("[authentication.jwt]\nsecret_file = \"{}\"\n", path.display());
    Broker::start_configured(&format!("{section}{settings}"))
}

pub(crate) fn token(claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[track_caller]
fn connect(broker: &Broker, version: ProtocolVersion, id: &str, token: &str) -> (Client, u8) {
    let (client, answer) =
        Hello::new(version, id).user("whoever", token.as_bytes()).try_open(broker.addr());
    let Got::ConnAck(_, code, _) = answer else { panic!("{answer:?}") };
    (client, code)
}

#[test]
fn a_good_token_lets_its_client_in_and_a_bad_one_nobody() {
    let broker = broker("client_id_claim = \"cid\"\n");
    let id = unique("token");
    let good = token(&json!({ "sub": "anna", "cid": id, "exp": now_s() + 600 }));
    for (version, refused) in [(V311, 5), (V5, 0x87)] {
        let (mut client, code) = connect(&broker, version, &id, &good);
        assert_eq!(code, 0);
        client.subscribe("a", 0);
        client.publish("a", "b", 0, 0);
        assert_eq!(client.message().text(), "b");
        client.disconnect();
        let late = token(&json!({ "sub": "anna", "cid": id, "exp": now_s() - 600 }));
        for (id, token) in [("another", &*good), (&*id, &*late), (&*id, "hunter2"), (&*id, "")] {
            let (mut client, code) = connect(&broker, version, id, token);
            assert_eq!(code, refused, "{id} {token}");
            client.assert_closed();
        }
    }
    let log = broker.stop_and_read_log();
    assert!(log.contains("the token is for another client identifier"), "{log}");
    assert!(!log.contains(&good) && !log.contains("hunter2"), "{log}");
}

#[test]
fn a_token_says_what_its_client_may_do() {
    let broker = broker("acl_claim = \"acl\"\n");
    let claims = |acl: Value| token(&json!({ "sub": "anna", "exp": now_s() + 600, "acl": acl }));
    let rule = json!([{ "permission": "allow", "action": "all", "topic": "mine/#" }]);
    let (mut client, code) = connect(&broker, V5, &unique("rules"), &claims(rule));
    assert_eq!(code, 0);
    assert_eq!(client.subscribe_all(&[("mine/a", 1), ("others/a", 1)]), [1, 0x87]);
    client.publish("mine/a", "b", 0, 0);
    assert_eq!(client.message().text(), "b");
    client.disconnect();
    let (mut client, code) = connect(&broker, V5, &unique("none"), &claims(json!([])));
    assert_eq!(code, 0);
    assert_eq!(client.subscribe_all(&[("mine/a", 1), ("$SYS/#", 0)]), [0x87, 0x87]);
    client.disconnect();
    let (mut client, code) = connect(&broker, V5, &unique("odd"), &claims(json!("everything")));
    assert_eq!(code, 0x87);
    client.assert_closed();
    broker.stop();
}

#[test]
fn a_connection_ends_with_its_token() {
    let broker = broker("leeway_s = 0\n");
    let soon = token(&json!({ "sub": "anna", "exp": now_s() + 4 }));
    let (mut client, code) = connect(&broker, V5, &unique("soon"), &soon);
    assert_eq!(code, 0);
    client.assert_closed_with(0x87);
    let log = broker.stop_and_read_log();
    assert!(log.contains("has expired"), "{log}");
}
