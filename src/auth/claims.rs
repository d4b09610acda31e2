//! What a token says, and an answer of a call-out in the same words: who the client is, and what it may do. Floor 3,
//! called by `auth::token` and `auth::call_out`. Pure; who signed the token has been checked.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::access::{Action, Permission, Rule};
use crate::session::authentication::{Refused, UserName};
use crate::topic::TopicFilter;

/// Which claims are read.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// Text that is the user name.
    pub user: String,
    /// Text that has to be the client identifier; `None` where any may be used.
    pub client_id: Option<String>,
    /// Rules; `None` where tokens bring none.
    pub rules: Option<String>,
}

/// What is left of a token once it is checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// Who the client is.
    pub user: UserName,
    /// Seconds since 1970 up to which that is true.
    pub expires_s: Option<u64>,
    /// What it may do, never empty; `None` where the token says nothing of it.
    pub rules: Option<Arc<[Rule]>>,
}

impl Claims {
    /// Reads the payload of a token of a client with this identifier.
    pub fn read(
        payload: &Map<String, Value>,
        names: &ClaimNames,
        client_id: &str,
    ) -> Result<Self, Refused> {
        let user = match payload.get(&names.user) {
            Some(Value::String(user)) if !user.is_empty() => UserName::new(user),
            _ => return Err(Refused("the token names no user")),
        };
        if let Some(name) = &names.client_id
            && payload.get(name).and_then(Value::as_str) != Some(client_id)
        {
            return Err(Refused("the token is for another client identifier"));
        }
        let expires_s = match payload.get("exp") {
            None | Some(Value::Null) => None,
            Some(exp) => {
                Some(seconds(exp).ok_or(Refused("the token has an `exp` that is no time"))?)
            }
        };
        let claimed = names.rules.as_ref().and_then(|name| payload.get(name));
        let rules = claimed.map(read_rules).transpose()?;
        Ok(Self { user, expires_s, rules })
    }
}

/// A NumericDate (RFC 7519, section 2).
fn seconds(value: &Value) -> Option<u64> {
    // The cast saturates, and what is too late is never.
    value.as_u64().or_else(|| value.as_f64().filter(|it| *it >= 0.0).map(|it| it as u64))
}

/// A rule as it is written. A key that is not known here could be a condition, so it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    permission: WrittenPermission,
    action: WrittenAction,
    topic: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenPermission {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenAction {
    Publish,
    Subscribe,
    All,
}

/// A list of rules. One that cannot be read makes all of them useless, for it may be the one that denies.
pub(super) fn read_rules(value: &Value) -> Result<Arc<[Rule]>, Refused> {
    const MALFORMED: Refused = Refused("a rule for topics cannot be read");
    let Value::Array(list) = value else { return Err(MALFORMED) };
    let read = |rule: &Value| {
        let Written { permission, action, topic } =
            Written::deserialize(rule).map_err(|_| MALFORMED)?;
        let filter = TopicFilter::parse(&topic).ok().filter(|filter| !filter.is_shared());
        Ok(Rule {
            permission: match permission {
                WrittenPermission::Allow => Permission::Allow,
                WrittenPermission::Deny => Permission::Deny,
            },
            action: match action {
                WrittenAction::Publish => Action::Publish,
                WrittenAction::Subscribe => Action::Subscribe,
                WrittenAction::All => Action::All,
            },
            filter: filter.ok_or(MALFORMED)?,
        })
    };
    if list.is_empty() {
        // A list that allows nothing is not the same as no list.
        let filter = TopicFilter::parse("#").map_err(|_| MALFORMED)?;
        let nothing = Rule { permission: Permission::Deny, action: Action::All, filter };
        return Ok([nothing].into());
    }
    list.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ClaimNames {
        ClaimNames { user: "sub".into(), client_id: Some("cid".into()), rules: Some("acl".into()) }
    }

    fn read(json: &str) -> Result<Claims, Refused> {
        let payload: Map<String, Value> = serde_json::from_str(json).unwrap();
        Claims::read(&payload, &names(), "fridge")
    }

    #[test]
    fn user_expiry_and_rules_are_read() {
        let claims = read(
            r#"{"sub":"anna","cid":"fridge","exp":1700000000,"acl":[
                {"permission":"allow","action":"publish","topic":"home/+/t"},
                {"permission":"deny","action":"all","topic":"home/#"}]}"#,
        )
        .unwrap();
        assert_eq!((claims.user.as_str(), claims.expires_s), ("anna", Some(1_700_000_000)));
        let rules = claims.rules.unwrap();
        let read: Vec<_> =
            rules.iter().map(|it| (it.permission, it.action, it.filter.as_str())).collect();
        let expected = [
            (Permission::Allow, Action::Publish, "home/+/t"),
            (Permission::Deny, Action::All, "home/#"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_not_asked_for_is_not_read() {
        let payload =
            serde_json::from_str(r#"{"name":"anna","cid":7,"acl":"everything"}"#).unwrap();
        let names = ClaimNames { user: "name".into(), client_id: None, rules: None };
        let claims = Claims::read(&payload, &names, "fridge").unwrap();
        assert_eq!(claims, Claims { user: UserName::new("anna"), expires_s: None, rules: None });
    }

    #[test]
    fn empty_list_of_rules_allows_nothing_and_no_list_leaves_it_to_others() {
        assert_eq!(read(r#"{"sub":"anna","cid":"fridge"}"#).unwrap().rules, None);
        let rules = read(r#"{"sub":"anna","cid":"fridge","acl":[]}"#).unwrap().rules.unwrap();
        let rules = rules.iter().map(|it| (it.permission, it.action, it.filter.as_str()));
        assert_eq!(rules.collect::<Vec<_>>(), [(Permission::Deny, Action::All, "#")]);
    }

    #[test]
    fn claims_of_another_kind_refuse_the_client() {
        for json in [
            r#"{"cid":"fridge"}"#,
            r#"{"sub":"","cid":"fridge"}"#,
            r#"{"sub":["anna"],"cid":"fridge"}"#,
            r#"{"sub":"anna"}"#,
            r#"{"sub":"anna","cid":"oven"}"#,
            r#"{"sub":"anna","cid":["fridge"]}"#,
            r#"{"sub":"anna","cid":"fridge","exp":"soon"}"#,
            r#"{"sub":"anna","cid":"fridge","exp":-1}"#,
            r#"{"sub":"anna","cid":"fridge","acl":{}}"#,
            r#"{"sub":"anna","cid":"fridge","acl":null}"#,
            r#"{"sub":"anna","cid":"fridge","acl":[{"permission":"allow","action":"all"}]}"#,
            r#"{"sub":"anna","cid":"fridge","acl":[{"permission":"allow","action":"all","topic":"a/#/b"}]}"#,
            r#"{"sub":"anna","cid":"fridge","acl":[{"permission":"allow","action":"all","topic":"a","qos":[0]}]}"#,
            r#"{"sub":"anna","cid":"fridge","acl":[{"permission":"maybe","action":"all","topic":"a"}]}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert_eq!(
            read(r#"{"sub":"a","cid":"fridge","exp":1e300}"#).unwrap().expires_s,
            Some(u64::MAX)
        );
        assert_eq!(read(r#"{"sub":"a","cid":"fridge","exp":1.9}"#).unwrap().expires_s, Some(1));
    }
}
