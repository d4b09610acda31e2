//! Loads with a name: what `--preset` sets. Called by `args` before the command line is read for good.
//!
//! `singlenode-…` are the scenarios of EMQ's Open MQTT Benchmark Suite (mqttbs) under their own
//! names, so that results can be put side by side: 16-byte payloads, QoS 1, keep-alive 300 s, half an
//! hour. The others show what those leave out.

use std::ffi::OsString;

use clap::builder::PossibleValue;

/// See the module.
#[derive(Debug)]
pub(crate) struct Preset {
    /// What `--preset` takes.
    pub(crate) name: &'static str,
    /// A part of the command line.
    options: &'static str,
    /// What the load is there to show.
    pub(crate) shows: &'static str,
}

/// All of them.
pub(crate) const PRESETS: &[Preset] = &[
    Preset {
        name: "singlenode-conn-tcp-10K-100",
        options: "--scenario connect --clients 10000 --connect-rate 100 --keep-alive 300 --hold 1800",
        shows: "Connections at a steady rate, and what an idle one costs",
    },
    Preset {
        name: "singlenode-fanout-1-1K-1-1K",
        options: "--scenario fan-out --publishers 1 --subscribers 1000 --rate-per-publisher 1 \
                  --qos 1 --payload 16 --keep-alive 300 --duration 1800",
        shows: "One message a second to a thousand subscribers: how long until the last one has it",
    },
    Preset {
        name: "singlenode-p2p-1K-1K-1K-1K",
        options: "--scenario p2p --clients 2000 --rate-per-publisher 1 --qos 1 --payload 16 \
                  --keep-alive 300 --duration 1800",
        shows: "A thousand quiet pairs: latency when nearly every message is alone",
    },
    Preset {
        name: "singlenode-sharedsub-1K-5-1K-1K",
        options: "--scenario shared --mqtt 5 --group benchmark --publishers 1000 --subscribers 5 \
                  --rate-per-publisher 1 --qos 1 --payload 16 --keep-alive 300 --duration 1800",
        shows: "A thousand publishers, shared among five consumers",
    },
    Preset {
        name: "singlenode-conn-tcp-1M-5K",
        options: "--scenario connect --clients 1000000 --connect-rate 5000 --keep-alive 300 \
                  --hold 1800",
        shows: "A million connections; needs as many open files on both sides",
    },
    Preset {
        name: "singlenode-fanout-5-1000-5-250K",
        options: "--scenario fan-out --publishers 5 --subscribers 1000 --topics 5 \
                  --rate-per-publisher 50 --qos 1 --payload 16 --keep-alive 300 --duration 1800",
        shows: "250,000 deliveries a second to a thousand subscribers",
    },
    Preset {
        name: "singlenode-p2p-50K-50K-50K-50K",
        options: "--scenario p2p --clients 100000 --rate-per-publisher 1 --qos 1 --payload 16 \
                  --keep-alive 300 --duration 1800",
        shows: "Fifty thousand quiet pairs; needs 100,000 open files on both sides",
    },
    Preset {
        name: "singlenode-sharedsub-50K-500-50K-50K",
        options: "--scenario shared --mqtt 5 --group benchmark --publishers 50000 --subscribers 500 \
                  --rate-per-publisher 1 --qos 1 --payload 16 --keep-alive 300 --duration 1800",
        shows: "Fifty thousand publishers, shared among 500 consumers",
    },
    Preset {
        name: "durable-p2p-10K-10K-10K-10K",
        options: "--scenario p2p --clients 20000 --persistent --rate-per-publisher 1 --qos 1 \
                  --payload 16 --keep-alive 300 --duration 300",
        shows: "Ten thousand pairs whose sessions outlive their connections: what durability costs",
    },
    Preset {
        name: "offline-drain-1K-1M",
        options: "--scenario offline --publishers 10 --subscribers 1000 --messages 1000000 --qos 1 \
                  --payload 64",
        shows: "A million messages stored for a thousand sessions that are away, then delivered",
    },
    Preset {
        name: "slowsub-1-1000-10pct",
        options: "--scenario slow --publishers 1 --subscribers 1000 --slow-percent 10 --rate 100 \
                  --qos 0 --payload 1024 --duration 60",
        shows: "A tenth of a thousand subscribers reads slowly: what the others feel of it",
    },
    Preset {
        name: "churn-1K",
        options: "--scenario churn --clients 200 --rate-per-publisher 10 --churn-clients 1000 \
                  --churn-rate 1000 --qos 1 --payload 64 --duration 60",
        shows: "A hundred steady pairs while a thousand clients subscribe and unsubscribe",
    },
    Preset {
        name: "retain-10K-10",
        options: "--scenario retain --publishers 10 --subscribers 10 --messages 10000 --qos 1 \
                  --payload 64",
        shows: "Ten thousand retained messages set at full speed and replayed to ten subscribers",
    },
    Preset {
        name: "reconnect-tcp-10K-storm",
        options: "--scenario reconnect --clients 10000 --concurrent 10000",
        shows: "Ten thousand clients cut at once: how long until all are back",
    },
    Preset {
        name: "payload-16B",
        options: "--scenario p2p --clients 20 --qos 1 --payload 16",
        shows: "Cost per message, with next to no payload",
    },
    Preset {
        name: "payload-256B",
        options: "--scenario p2p --clients 20 --qos 1 --payload 256",
        shows: "The same with 256 bytes",
    },
    Preset {
        name: "payload-1KB",
        options: "--scenario p2p --clients 20 --qos 1 --payload 1024",
        shows: "The same with 1,024 bytes",
    },
    Preset {
        name: "payload-16KB",
        options: "--scenario p2p --clients 20 --qos 1 --payload 16384",
        shows: "Cost per byte: 16,384 of them in each message",
    },
];

/// Options that say the same thing in different ways: one that is given replaces the preset's.
const ALTERNATIVES: &[&[&str]] =
    &[&["rate", "rate_per_publisher", "window", "search"], &["concurrent", "connect_rate"]];

impl Preset {
    /// The preset of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// For the help of `--preset`.
    pub(crate) fn values() -> Vec<PossibleValue> {
        PRESETS.iter().map(|preset| PossibleValue::new(preset.name).help(preset.shows)).collect()
    }

    /// Its options as words of a command line, without those that are given, by their names in `Args`.
    pub(crate) fn options_unless(&self, is_given: impl Fn(&str) -> bool) -> Vec<OsString> {
        let replaced = |name: &str| {
            let group = ALTERNATIVES.iter().find(|group| group.contains(&name));
            let is_count = name == "publishers" || name == "subscribers";
            is_given(name)
                || group.is_some_and(|group| group.iter().any(|name| is_given(name)))
                || is_count && is_given("clients")
        };
        let mut kept = Vec::new();
        let mut keeps = true;
        for word in self.options.split_ascii_whitespace() {
            if let Some(option) = word.strip_prefix("--") {
                keeps = !replaced(&option.replace('-', "_"));
            }
            if keeps {
                kept.push(word.into());
            }
        }
        kept
    }

    /// The whole table, for people.
    pub(crate) fn list() -> String {
        let mut list = String::new();
        for Self { name, options, shows } in PRESETS {
            let options: Vec<&str> = options.split_ascii_whitespace().collect();
            list.push_str(&format!("{name}\n    {shows}.\n    {}\n", options.join(" ")));
        }
        list.push_str("\nOptions given beside --preset replace those of the preset.\n");
        list
    }
}
