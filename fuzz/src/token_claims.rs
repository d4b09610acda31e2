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
        assert_eq!(claims.rules.is_some(), payload.contains_key("acl"));
        let written = payload.get("acl").and_then(Value::as_array);
        let rules = claims.rules.as_deref().unwrap_or_default();
        match written.map(Vec::len) {
            // What allows nothing is written as a rule that denies everything.
            Some(0) => assert_eq!(rules.first().map(|it| it.permission), Some(Permission::Deny)),
            count => assert_eq!(rules.len(), count.unwrap_or(0), "none is left out"),
        }
        for (rule, written) in rules.iter().zip(written.into_iter().flatten()) {
            let is_allowing = rule.permission == Permission::Allow;
            assert_eq!(written["permission"], if is_allowing { "allow" } else { "deny" });
            assert_eq!(written["topic"], rule.filter.as_str());
            assert!(TopicFilter::parse(rule.filter.as_str()).is_ok());
        }
    }
}
