//! What clients can fill a broker with.

use mailboxqtt::codec::{PropertiesBuf, Property};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::flood::tide::Tide;
use crate::wire::{Hello, Publication, publish};

/// One of them.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) settings: &'static str,
    /// Returns what its clients were told, which stay until the tide is dropped.
    pub(super) flood: fn(&mut Tide) -> String,
}

const NONE: &str = "durability = 'none'";
/// On the disk, as far as the test's disk is one.
const ALWAYS: &str = "durability = 'always'";

/// All.
pub(super) const KINDS: [Kind; 16] = [
    Kind { name: "19,000 idle connections", settings: NONE, flood: idle },
    Kind {
        name: "3,000 half CONNECTs, 240 of 250 kB of each",
        settings: NONE,
        flood: half_connects,
    },
    Kind { name: "300 packets of 16 MB begun, 4 MB of each", settings: NONE, flood: half_packets },
    Kind {
        name: "6,000 CONNECTs with wills of 60 kB, for sessions that stay",
        settings: NONE,
        flood: wills,
    },
    Kind { name: "20 slow readers at QoS 0, 800 MB published", settings: NONE, flood: slow_qos_0 },
    Kind {
        name: "1,000 slow readers at QoS 0, 20 MB published",
        settings: NONE,
        flood: many_slow_qos_0,
    },
    Kind { name: "20 slow readers at QoS 1", settings: NONE, flood: slow_qos_1 },
    Kind { name: "20 absent sessions at QoS 1", settings: NONE, flood: absent },
    Kind { name: "20 absent sessions at QoS 1, on disk", settings: ALWAYS, flood: absent },
    Kind { name: "retained messages of 10 kB", settings: NONE, flood: retained },
    Kind {
        name: "1,000 slow readers of 40 MB of retained messages",
        settings: NONE,
        flood: replays,
    },
    Kind { name: "subscriptions of 120 bytes", settings: NONE, flood: subscriptions },
    Kind { name: "400 clients that ping and do not read", settings: NONE, flood: unread_answers },
    Kind { name: "400 clients with 64 topic aliases of 30 kB", settings: NONE, flood: aliases },
    Kind {
        name: "200 publishers of 1 MB at QoS 1, to disk",
        settings: ALWAYS,
        flood: large_to_disk,
    },
    Kind { name: "100,000 topics of 5 kB", settings: NONE, flood: topics },
];

fn idle(tide: &mut Tide) -> String {
    tide.connect(V311, 19_000).to_string()
}

fn half_connects(tide: &mut Tide) -> String {
    let payload = "w".repeat(60_000);
    let user = "u".repeat(65_000);
    let password = vec![b'p'; 65_000];
    let topic = "t".repeat(60_000);
    let hello = Hello::new(V5, "half").will(&topic, &payload, 0, false).user(&user, &password);
    let bytes = hello.bytes();
    tide.connect_raw(3_000);
    let poured = tide.pour(&bytes[..bytes.len() - 10_000]);
    format!("{} MB taken, {} closed at once", poured / 1_000_000, 3_000 - tide.open())
}

fn half_packets(tide: &mut Tide) -> String {
    tide.connect(V5, 300);
    let packet = publish(V5, "large", &vec![b'x'; 16_000_000], 0, 0, false);
    let poured = tide.pour(&packet[..4_000_000]);
    format!("{} MB taken, then not read", poured / 1_000_000)
}

fn wills(tide: &mut Tide) -> String {
    tide.leave_wills(6_000, &"w".repeat(60_000)).to_string()
}

fn slow_qos_0(tide: &mut Tide) -> String {
    tide.connect_deaf(20, "flood", 0);
    pour_messages(tide, 80_000)
}

fn many_slow_qos_0(tide: &mut Tide) -> String {
    tide.connect_deaf(1_000, "flood", 0);
    pour_messages(tide, 2_000)
}

fn pour_messages(tide: &mut Tide, count: usize) -> String {
    let message = publish(V5, "flood", &[b'x'; 10_000], 0, 0, false);
    let mut source = tide.source();
    let poured = source.pour(&message.repeat(count));
    format!("nothing; {} MB read, what was too much dropped and counted", poured / 1_000_000)
}

fn slow_qos_1(tide: &mut Tide) -> String {
    tide.connect_deaf(20, "flood", 1);
    tide.publish(80_000, false, |_| "flood".to_owned()).to_string()
}

fn absent(tide: &mut Tide) -> String {
    tide.leave(20, "flood");
    tide.publish(80_000, false, |_| "flood".to_owned()).to_string()
}

fn retained(tide: &mut Tide) -> String {
    tide.publish(60_000, true, |number| format!("retained/{number}")).to_string()
}

fn replays(tide: &mut Tide) -> String {
    let kept = tide.publish(4_000, true, |number| format!("retained/{number}"));
    tide.connect_deaf(1_000, "retained/#", 0);
    std::thread::sleep(std::time::Duration::from_secs(2));
    format!("{kept}; {} connections open", tide.open())
}

fn subscriptions(tide: &mut Tide) -> String {
    tide.subscribe(400_000, |number| format!("{number}/{}", "f".repeat(110))).to_string()
}

fn unread_answers(tide: &mut Tide) -> String {
    tide.connect(V5, 400);
    tide.make_deaf();
    let poured = tide.pour(&[0xC0, 0].repeat(4_000_000));
    format!("{} MB taken, then not read", poured / 1_000_000)
}

fn aliases(tide: &mut Tide) -> String {
    tide.connect(V5, 400);
    let mut bytes = Vec::new();
    for alias in 1..=64 {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::TopicAlias(alias));
        let topic = format!("{alias}/{}", "a".repeat(30_000));
        bytes.extend(Publication { properties, ..Publication::new(&topic, b"") }.bytes(V5));
    }
    let poured = tide.pour(&bytes);
    format!("{} MB taken, {} connections open", poured / 1_000_000, tide.open())
}

fn large_to_disk(tide: &mut Tide) -> String {
    tide.leave(1, "large");
    tide.connect(V5, 200);
    let packet = publish(V5, "large", &vec![b'x'; 1_000_000], 1, 1, false);
    let packets: Vec<u8> = (1..=20).flat_map(|_| packet.clone()).collect();
    let poured = tide.pour(&packets);
    format!("{} MB taken, {} connections open", poured / 1_000_000, tide.open())
}

fn topics(tide: &mut Tide) -> String {
    let mut source = tide.source();
    let mut poured = 0;
    for part in 0..10 {
        let mut bytes = Vec::new();
        for number in 0..10_000 {
            let topic = format!("{part}/{number}/{}", "t".repeat(5_000));
            bytes.extend(publish(V5, &topic, b"", 0, 0, false));
        }
        poured += source.pour(&bytes);
    }
    format!("{} MB taken", poured / 1_000_000)
}
