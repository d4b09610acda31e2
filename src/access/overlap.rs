//! Filters beside filters: what two have in common, and whether one has all of another. Floor 1, called by `access`.
//!
//! A filter here is its levels. With `a/#` also `a` is meant [MQTT-4.7.1-2]; a wildcard in first place stands for no
//! level that begins with `$` [MQTT-4.7.2-1].

/// The filter that matches the topics that both match; `None` where there are none.
pub(super) fn intersection<'a>(one: &'a str, other: &'a str) -> Option<Vec<&'a str>> {
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    let mut common = Vec::new();
    loop {
        let level = match (ones.next(), others.next()) {
            (None, None) => return Some(common),
            // One ends where the other goes on: with `#` it may end here, too.
            (None, Some("#")) | (Some("#"), None) => return Some(common),
            (None, Some(_)) | (Some(_), None) => return None,
            (Some("#"), Some(rest)) => return with_rest(common, rest, others),
            (Some(rest), Some("#")) => return with_rest(common, rest, ones),
            (Some("+"), Some(level)) | (Some(level), Some("+")) => {
                if common.is_empty() && level.starts_with('$') {
                    return None;
                }
                level
            }
            (Some(level), Some(same)) if level == same => level,
            _ => return None,
        };
        common.push(level);
    }
}

/// One of two filters is `#` from here on.
fn with_rest<'a>(
    mut common: Vec<&'a str>,
    first: &'a str,
    rest: impl Iterator<Item = &'a str>,
) -> Option<Vec<&'a str>> {
    if common.is_empty() && first.starts_with('$') {
        return None;
    }
    common.push(first);
    common.extend(rest);
    Some(common)
}

/// Whether `filter` matches every topic that the filter with these levels does.
pub(super) fn covers(filter: &str, levels: &[&str]) -> bool {
    // A topic has at least one level.
    let filter = if filter == "+/#" { "#" } else { filter };
    // No topic is empty, so nothing of `/#` ends at its first level.
    let levels = if levels == ["", "#"] { &["", "+", "#"] } else { levels };
    let is_system = levels.first().is_some_and(|level| level.starts_with('$'));
    if is_system && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut rest = levels.iter();
    for expected in filter.split('/') {
        if expected == "#" {
            // `a/#` has `a` in it, and so has what is left, if anything is.
            return true;
        }
        match rest.next() {
            Some(&"#") | None => return false,
            Some(level) if expected == "+" || expected == *level => (),
            Some(_) => return false,
        }
    }
    rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::{TopicFilter, matches};

    #[test]
    fn what_two_filters_have_in_common_is_a_filter() {
        let common = |a, b| intersection(a, b).map(|levels| levels.join("/"));
        assert_eq!(common("a/#", "a").as_deref(), Some("a"));
        assert_eq!(common("a/#", "+/b").as_deref(), Some("a/b"));
        assert_eq!(common("a/#", "+/+/#").as_deref(), Some("a/+/#"));
        assert_eq!(common("#", "$SYS/#"), None);
        assert_eq!(common("+/x", "$SYS/x"), None);
        assert_eq!(common("a/+", "a"), None);
    }

    #[test]
    fn filter_that_begins_with_a_separator_is_covered_by_one_more_level() {
        for filter in ["/#", "/+/#", "+/+/#", "+/#", "#"] {
            assert!(covers(filter, &["", "#"]), "{filter}");
        }
        assert!(!covers("a/+/#", &["a", "#"]) && !covers("/+/+/#", &["", "#"]));
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["a", "b", "", "+", "$x"]);
        (prop::collection::vec(level, 1..4), any::<bool>())
            .prop_map(|(mut levels, has_hash)| {
                if has_hash {
                    levels.push("#");
                }
                levels.join("/")
            })
            .prop_filter("valid", |text| TopicFilter::parse(text).is_ok())
    }

    /// All topics of up to four of these levels; `z` is in no filter.
    fn topics() -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut newest = vec![String::new()];
        for depth in 0..4 {
            let mut longer = Vec::new();
            for stem in &newest {
                for level in ["a", "b", "", "z", "$x"] {
                    longer.push(if depth == 0 { level.into() } else { format!("{stem}/{level}") });
                }
            }
            all.extend(longer.iter().filter(|topic| !topic.is_empty()).cloned());
            newest = longer;
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn intersection_and_cover_agree_with_all_topics((a, b) in (filter(), filter())) {
            let topics = topics();
            let common = intersection(&a, &b).map(|levels| levels.join("/"));
            for topic in &topics {
                let both = matches(&a, topic) && matches(&b, topic);
                let found = common.as_ref().is_some_and(|common| matches(common, topic));
                prop_assert_eq!(both, found, "{} and {} at {}", &a, &b, topic);
            }
            let levels: Vec<&str> = b.split('/').collect();
            let has_all = topics.iter().all(|topic| !matches(&b, topic) || matches(&a, topic));
            prop_assert_eq!(covers(&a, &levels), has_all, "{} and {}", &a, &b);
        }
    }
}
