//! The payload of a token whose signature is right: whatever it says, it is a user with rules that can be, or refused.

use mailboxqtt::access::Permission;
use mailboxqtt::auth::{ClaimNames, Claims};
use mailboxqtt::topic::TopicFilter;
use serde_json::{Map, Value};

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let Ok(payload) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return };
    for client_id in [None, Some("cid".to_owned())] {
        let names = ClaimNames { user: "sub".to_owned(), client_id, rules: Some("acl".to_owned()) };
        let Ok(claims) = Claims::read(&payload, &names, "fridge") else { continue };
        assert_eq!(payload["sub"], claims.user.as_str());
        assert!(!claims.user.as_str().is_empty());
        if names.client_id.is_some() {
            assert_eq!(payload["cid"], "fridge");
        }
        assert_eq!(!claims.rules.is_empty(), payload.contains_key("acl"));
        let written = payload.get("acl").and_then(Value::as_array);
        let Some(written) = written.filter(|list| !list.is_empty()) else { continue };
        assert_eq!(claims.rules.len(), written.len(), "none is left out");
        for (rule, written) in claims.rules.iter().zip(written) {
            let allows = rule.permission == Permission::Allow;
            assert_eq!(written["permission"], if allows { "allow" } else { "deny" });
            assert_eq!(written["topic"], rule.filter.as_str());
            assert!(TopicFilter::parse(rule.filter.as_str()).is_ok());
        }
    }
}
