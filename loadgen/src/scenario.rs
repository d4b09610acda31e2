//! Who publishes what to whom. Turns the arguments into a [`Layout`]; `worker` builds its clients
//! from it. Pure: knows no socket.
//!
//! In every scenario a message reaches a known number of subscribers, so loss is counted exactly.

use std::ops::Range;

use clap::ValueEnum;

/// Subscribers that match each message of `wildcard`, one per shape of filter.
const WILDCARD_SHAPES: usize = 3;

/// Five digits; every publisher holds a frame per key.
const WILDCARD_KEYS_MAX: usize = 100_000;

/// What the load looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Scenario {
    /// Pairs of one publisher and one subscriber, a topic each
    P2p,
    /// Many publishers to one subscriber (or to --subscribers, each with its share of publishers)
    FanIn,
    /// One publisher (or --publishers) to many subscribers, each of which receives everything
    FanOut,
    /// Publishers over many topics, subscribers with 100 wildcard filters each; a message matches 3
    Wildcard,
    /// Many publishers to one shared subscription: each message reaches one of its subscribers
    Shared,
    /// Fan-out of which --slow-percent of the subscribers read slowly; measured are the others
    Slow,
    /// Pairs as in p2p, while --churn-clients subscribe and unsubscribe
    Churn,
    /// Sessions that are away while --messages are published for them, and then come back
    Offline,
    /// --messages retained messages are set, and replayed to every subscriber
    Retain,
    /// All connections are cut at once and come back
    Reconnect,
    /// Only connect: handshakes per second, and memory of idle connections
    Connect,
}

/// How many of each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size<'a> {
    /// All connections; `None` for the default of the scenario.
    pub(crate) clients: Option<usize>,
    /// Of which publishers.
    pub(crate) publishers: Option<usize>,
    /// Of which subscribers.
    pub(crate) subscribers: Option<usize>,
    /// Wildcard filters per subscriber.
    pub(crate) filters: usize,
    /// Topics in fan-out.
    pub(crate) topics: usize,
    /// Of the subscribers of `slow`.
    pub(crate) slow_percent: u32,
    /// Clients that subscribe and unsubscribe, in `churn`.
    pub(crate) churn_clients: usize,
    /// Name of the shared subscription.
    pub(crate) group: &'a str,
}

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Layout {
    /// In the order in which they connect.
    pub(crate) clients: Vec<Role>,
    /// How many of them publish.
    pub(crate) publishers: u32,
    /// How many subscribers each message reaches.
    pub(crate) receivers: u64,
    /// A subscriber receives every how-manieth message of its publishers.
    pub(crate) stride: u64,
    /// All subscribers are one group, of which one receives each message.
    pub(crate) grouped: bool,
    /// Further clients, which are led by `beside`.
    pub(crate) beside: usize,
}

/// What one client does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Publishes on its topics in turn; they are equally long.
    Publisher {
        /// Counts publishers from zero.
        id: u32,
        /// At least one.
        topics: Vec<String>,
    },
    /// Receives from a range of publishers.
    Subscriber {
        /// What it subscribes to.
        filters: Vec<String>,
        /// Whose messages match.
        publishers: Range<u32>,
        /// The first of the sequence numbers that match; further ones follow by the stride.
        first: u64,
    },
    /// Only holds its connection.
    Idle,
}

impl Scenario {
    /// Whether it is a sequence of steps and not a steady load.
    pub(crate) fn is_steps(self) -> bool {
        matches!(self, Self::Offline | Self::Retain | Self::Reconnect)
    }

    /// As the command line has it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Layout {
    /// Lays out a scenario below a topic prefix; the error says which number does not fit.
    pub(crate) fn new(scenario: Scenario, size: Size<'_>, prefix: &str) -> Result<Self, String> {
        let layout = match scenario {
            Scenario::P2p => p2p(size, prefix),
            Scenario::FanIn => fan_in(size, prefix),
            Scenario::FanOut => fan_out(size, prefix),
            Scenario::Wildcard => wildcard(size, prefix),
            Scenario::Shared => shared(size, prefix),
            Scenario::Slow => slow(size, prefix),
            Scenario::Churn => {
                p2p(size, prefix).map(|layout| Layout { beside: size.churn_clients, ..layout })
            }
            Scenario::Offline => ends(size, 100),
            Scenario::Retain => ends(size, 10),
            Scenario::Reconnect | Scenario::Connect => Ok(connect(size)),
        }?;
        if layout.clients.is_empty() {
            return Err("no clients: give --clients at least 2".to_owned());
        }
        Ok(layout)
    }

    /// Spreads the clients over threads: who feeds whom stays together where that is possible, and a
    /// group in any case.
    pub(crate) fn threads(&self, threads: usize) -> Vec<usize> {
        if self.grouped && threads > 1 {
            let place = |role: &Role| match role {
                Role::Publisher { id, .. } => 1 + *id as usize % (threads - 1),
                Role::Subscriber { .. } | Role::Idle => 0,
            };
            return self.clients.iter().map(place).collect();
        }
        let mut idle = 0;
        let mut subscribers = 0;
        let mut owner = vec![None; self.publishers as usize];
        for role in &self.clients {
            if let Role::Subscriber { publishers, .. } = role {
                for publisher in publishers.clone() {
                    owner[publisher as usize].get_or_insert(subscribers % threads);
                }
                subscribers += 1;
            }
        }
        let alone = subscribers >= threads && self.receivers == 1;
        subscribers = 0;
        let place = |role: &Role| match role {
            Role::Publisher { id, .. } => {
                let owner = owner[*id as usize].filter(|_| alone);
                owner.unwrap_or(*id as usize % threads)
            }
            Role::Subscriber { .. } => {
                subscribers += 1;
                (subscribers - 1) % threads
            }
            Role::Idle => {
                idle += 1;
                (idle - 1) % threads
            }
        };
        self.clients.iter().map(place).collect()
    }
}

fn p2p(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    let pairs = size.clients.unwrap_or(100) / 2;
    let topic = |pair| format!("{prefix}/p2p/{pair}");
    let clients = (0..pairs as u32).flat_map(|pair| {
        [
            subscriber(vec![topic(pair)], pair..pair + 1),
            Role::Publisher { id: pair, topics: vec![topic(pair)] },
        ]
    });
    Ok(Layout {
        clients: clients.collect(),
        publishers: pairs as u32,
        receivers: 1,
        stride: 1,
        grouped: false,
        beside: 0,
    })
}

fn fan_in(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    let subscribers = size.subscribers.unwrap_or(1).max(1);
    let clients = size.clients.unwrap_or(10 + subscribers);
    let publishers = size.publishers.unwrap_or(clients.saturating_sub(subscribers));
    if publishers < subscribers {
        return Err(format!("{subscribers} subscribers need at least as many publishers"));
    }
    let topic = |subscriber| format!("{prefix}/in/{subscriber}");
    let share = |subscriber: usize| (subscriber * publishers / subscribers) as u32;
    let mut clients = Vec::with_capacity(publishers + subscribers);
    for number in 0..subscribers {
        let from = share(number)..share(number + 1);
        clients.push(subscriber(vec![topic(number)], from.clone()));
        clients.extend(from.map(|id| Role::Publisher { id, topics: vec![topic(number)] }));
    }
    Ok(Layout {
        clients,
        publishers: publishers as u32,
        receivers: 1,
        stride: 1,
        grouped: false,
        beside: 0,
    })
}

fn fan_out(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    let publishers = size.publishers.unwrap_or(1).max(1);
    let clients = size.clients.unwrap_or(50 + publishers);
    let subscribers = size.subscribers.unwrap_or(clients.saturating_sub(publishers));
    if subscribers == 0 {
        return Err(format!("{publishers} publishers leave no client to subscribe"));
    }
    if size.topics > publishers {
        return Err(format!("{publishers} publishers cannot use {} topics", size.topics));
    }
    let topics: Vec<String> = match size.topics {
        1 => vec![format!("{prefix}/out")],
        topics => (0..topics).map(|topic| format!("{prefix}/out/{topic}")).collect(),
    };
    let mut clients = vec![subscriber(topics.clone(), 0..publishers as u32); subscribers];
    clients.extend((0..publishers).map(|id| {
        let topics = vec![topics[id % topics.len()].clone()];
        Role::Publisher { id: id as u32, topics }
    }));
    let publishers = publishers as u32;
    Ok(Layout {
        clients,
        publishers,
        receivers: subscribers as u64,
        stride: 1,
        grouped: false,
        beside: 0,
    })
}

/// Publisher `p` publishes message `n` on `{prefix}/{p}/{k}/value` with `k = n % keys`. The
/// subscribers come in three groups, one per shape of filter (`+/k/value`, `+/k/+`, `+/k/#`);
/// within a group subscriber `c` of `classes` holds the keys with `k % classes == c`. So each
/// message matches one filter of one subscriber in each group: 3 deliveries, whoever sent it.
fn wildcard(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    let clients = size.clients.unwrap_or(16);
    let publishers = size.publishers.unwrap_or((clients / 4).max(1));
    let subscribers = size.subscribers.unwrap_or(clients.saturating_sub(publishers));
    let classes = subscribers / WILDCARD_SHAPES;
    if classes == 0 {
        return Err(format!("wildcard needs at least 3 subscribers, not {subscribers}"));
    }
    let keys = classes * size.filters;
    if keys > WILDCARD_KEYS_MAX {
        return Err(format!(
            "{classes} groups of {WILDCARD_SHAPES} subscribers with {} filters each make {keys} \
             topics per publisher, and at most {WILDCARD_KEYS_MAX} are possible",
            size.filters
        ));
    }
    // Keys and publishers have a fixed width, so that all frames have one length.
    let topic = |publisher: usize, key: usize| format!("{prefix}/{publisher:04}/{key:05}/value");
    let mut roles = Vec::with_capacity(publishers + subscribers);
    for shape in ["value", "+", "#"] {
        for class in 0..classes {
            let held = (class..keys).step_by(classes);
            roles.push(Role::Subscriber {
                filters: held.map(|key| format!("{prefix}/+/{key:05}/{shape}")).collect(),
                publishers: 0..publishers as u32,
                first: class as u64,
            });
        }
    }
    roles.extend((0..publishers).map(|number| Role::Publisher {
        id: number as u32,
        topics: (0..keys).map(|key| topic(number, key)).collect(),
    }));
    Ok(Layout {
        clients: roles,
        publishers: publishers as u32,
        receivers: WILDCARD_SHAPES as u64,
        stride: classes as u64,
        grouped: false,
        beside: 0,
    })
}

/// Every publisher has a topic of its own; all subscribers have the one filter.
fn shared(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    if size.group.is_empty() || size.group.contains(['/', '+', '#']) {
        return Err("--group must be a name, without / + and #".to_owned());
    }
    let clients = size.clients.unwrap_or(15);
    let subscribers = match (size.subscribers, size.publishers, size.clients) {
        (Some(subscribers), _, _) => subscribers,
        (None, Some(publishers), Some(clients)) => clients.saturating_sub(publishers),
        _ => 5,
    };
    let publishers = size.publishers.unwrap_or(clients.saturating_sub(subscribers));
    if subscribers == 0 || publishers == 0 {
        return Err(format!("{publishers} publishers and {subscribers} subscribers share nothing"));
    }
    let filter = format!("$share/{}/{prefix}/shared/#", size.group);
    let mut clients = vec![subscriber(vec![filter], 0..publishers as u32); subscribers];
    clients.extend((0..publishers as u32).map(|id| {
        let topics = vec![format!("{prefix}/shared/{id}")];
        Role::Publisher { id, topics }
    }));
    let publishers = publishers as u32;
    Ok(Layout { clients, publishers, receivers: 1, stride: 1, grouped: true, beside: 0 })
}

/// Fan-out to the subscribers that are not slow.
fn slow(size: Size<'_>, prefix: &str) -> Result<Layout, String> {
    let layout = fan_out(size, prefix)?;
    let subscribers = layout.receivers as usize;
    let slow = subscribers * size.slow_percent as usize / 100;
    if slow == 0 || slow == subscribers {
        return Err(format!(
            "{} % of {subscribers} subscribers are {slow} slow ones: there must be some of both",
            size.slow_percent
        ));
    }
    let fast = subscribers - slow;
    let fast = Size { clients: None, subscribers: Some(fast), ..size };
    Ok(Layout { beside: slow, ..fan_out(fast, prefix)? })
}

/// Publishers and subscribers for `steps`, which gives them their parts.
fn ends(size: Size<'_>, subscribers: usize) -> Result<Layout, String> {
    let half = size.clients.map_or(10, |clients| clients / 2);
    let publishers = size.publishers.unwrap_or(half.clamp(1, 10));
    let rest = size.clients.map(|clients| clients.saturating_sub(publishers));
    let subscribers = size.subscribers.or(rest).unwrap_or(subscribers);
    if subscribers == 0 || publishers == 0 {
        return Err(format!("{publishers} publishers and {subscribers} subscribers are too few"));
    }
    let clients = vec![Role::Idle; publishers + subscribers];
    let (publishers, receivers) = (publishers as u32, subscribers as u64);
    Ok(Layout { clients, publishers, receivers, stride: 1, grouped: false, beside: 0 })
}

fn connect(size: Size<'_>) -> Layout {
    let clients = vec![Role::Idle; size.clients.unwrap_or(1_000)];
    Layout { clients, publishers: 0, receivers: 0, stride: 1, grouped: false, beside: 0 }
}

fn subscriber(filters: Vec<String>, publishers: Range<u32>) -> Role {
    Role::Subscriber { filters, publishers, first: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_matches_exactly_the_subscribers_that_expect_it() {
        for scenario in [Scenario::P2p, Scenario::FanIn, Scenario::FanOut, Scenario::Wildcard] {
            let layout = layout(scenario, 26);
            for role in &layout.clients {
                let Role::Publisher { id, topics } = role else { continue };
                for (n, topic) in topics.iter().enumerate() {
                    assert_eq!(matching(&layout, *id, n as u64, topic), layout.receivers);
                    assert_eq!(topic.len(), topics[0].len());
                }
            }
        }
    }

    #[test]
    fn wildcard_is_four_publishers_to_twelve_subscribers_with_1_200_filters() {
        let layout = Layout::new(Scenario::Wildcard, size(None), "t").unwrap();
        let filters = layout.clients.iter().map(|role| match role {
            Role::Subscriber { filters, .. } => filters.len(),
            Role::Publisher { .. } | Role::Idle => 0,
        });
        assert_eq!((layout.publishers, layout.clients.len()), (4, 16));
        assert_eq!((filters.sum::<usize>(), layout.receivers, layout.stride), (1_200, 3, 4));
    }

    #[test]
    fn ten_thousand_clients_are_five_thousand_pairs_that_share_their_threads() {
        let layout = layout(Scenario::P2p, 10_000);
        assert_eq!(layout.publishers, 5_000);
        for pair in layout.threads(2).chunks(2) {
            assert_eq!(pair[0], pair[1]);
        }
    }

    #[test]
    fn fan_in_splits_publishers_among_subscribers() {
        let size = Size { subscribers: Some(3), publishers: Some(10), ..size(None) };
        let layout = Layout::new(Scenario::FanIn, size, "t").unwrap();
        assert_eq!(layout.clients.len(), 13);
        assert_eq!(layout.publishers, 10);
    }

    #[test]
    fn a_share_of_the_subscribers_is_slow_and_the_others_are_measured() {
        let layout = layout(Scenario::Slow, 101);
        assert_eq!((layout.clients.len(), layout.receivers, layout.beside), (91, 90, 10));
        for slow_percent in [0, 100] {
            let size = Size { slow_percent, ..size(Some(101)) };
            assert!(Layout::new(Scenario::Slow, size, "t").is_err());
        }
    }

    #[test]
    fn fan_out_over_several_topics_still_reaches_every_subscriber() {
        let size = Size { publishers: Some(5), subscribers: Some(3), topics: 5, ..size(None) };
        let layout = Layout::new(Scenario::FanOut, size, "t").unwrap();
        for role in &layout.clients {
            let Role::Publisher { id, topics } = role else { continue };
            assert_eq!(topics[..], [format!("t/out/{id}")]);
            assert_eq!(matching(&layout, *id, 0, &topics[0]), 3);
        }
        assert!(Layout::new(Scenario::FanOut, Size { topics: 6, ..size }, "t").is_err());
    }

    #[test]
    fn a_group_stays_on_one_thread_and_its_publishers_on_the_others() {
        let layout = Layout::new(Scenario::Shared, size(None), "t").unwrap();
        assert_eq!((layout.publishers, layout.clients.len(), layout.receivers), (10, 15, 1));
        for (role, place) in layout.clients.iter().zip(layout.threads(3)) {
            match role {
                Role::Subscriber { filters, .. } => {
                    assert_eq!(filters[..], ["$share/g/t/shared/#"]);
                    assert_eq!(place, 0);
                }
                _ => assert!((1..3).contains(&place)),
            }
        }
        assert!(layout.threads(1).iter().all(|place| *place == 0));
    }

    #[test]
    fn a_scenario_without_anyone_to_receive_is_refused() {
        assert!(Layout::new(Scenario::P2p, size(Some(1)), "t").is_err());
        assert!(Layout::new(Scenario::FanOut, size(Some(1)), "t").is_err());
        assert!(Layout::new(Scenario::FanIn, size(Some(1)), "t").is_err());
        assert!(Layout::new(Scenario::Wildcard, size(Some(2)), "t").is_err());
        assert!(Layout::new(Scenario::Shared, size(Some(5)), "t").is_err());
        let group = Size { group: "a/b", ..size(None) };
        assert!(Layout::new(Scenario::Shared, group, "t").is_err());
        assert!(Layout::new(Scenario::Wildcard, size(Some(100_000)), "t").is_err());
    }

    /// Counts matching filters, and checks that they belong to subscribers that expect the message.
    fn matching(layout: &Layout, publisher: u32, n: u64, name: &str) -> u64 {
        let mut matching = 0;
        for role in &layout.clients {
            let Role::Subscriber { filters, publishers, first } = role else { continue };
            let here = filters.iter().filter(|filter| matches(filter, name)).count() as u64;
            let expected = publishers.contains(&publisher) && n % layout.stride == *first;
            assert_eq!(here, u64::from(expected), "{name} at {filters:?}");
            matching += here;
        }
        matching
    }

    /// Enough of topic matching for the filters of this file.
    fn matches(filter: &str, name: &str) -> bool {
        let mut levels = name.split('/');
        for part in filter.split('/') {
            match (part, levels.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (part, level) if Some(part) == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    fn layout(scenario: Scenario, clients: usize) -> Layout {
        Layout::new(scenario, size(Some(clients)), "t").unwrap()
    }

    fn size(clients: Option<usize>) -> Size<'static> {
        Size {
            clients,
            publishers: None,
            subscribers: None,
            filters: 100,
            topics: 1,
            slow_percent: 10,
            churn_clients: 10,
            group: "g",
        }
    }
}
