//! The standards MQTT 5.0 and 3.1.1, statement by statement, against the running broker.
//!
//! `tests/conformance_table.rs` reads these tests and makes `docs/conformance.md` of them: which test
//! proves which statement. `just conformance` does so and runs them; `just conformance --addr
//! HOST:PORT` runs them against any other broker.
//!
//! # The rules
//!
//! - A test decides by what the standard says and by nothing else, so that it can be pointed at another
//!   broker. Where the standard leaves a choice, each choice passes; where it leaves the *reason code* of
//!   a disconnect to the broker, see `Client::assert_refused`, ours has to say it.
//! - A test that needs particular settings starts a broker of our own with `Broker::start_configured` and
//!   is skipped, by name, when the tests are pointed at another one.
//! - Topics and client identifiers come from `process::unique`: tests run in parallel, against one broker.
//! - The comment of a test names the statements that it proves, which is: if the broker broke the
//!   statement, the test would fail. `[MQTT-3.1.2-4]` is one of MQTT 5.0, `[MQTT-3.1.2-4 of 3.1.1]` one
//!   of MQTT 3.1.1; the same number often means different things. What both standards say is tried in one
//!   test, which loops over `VERSIONS` and names both.
//! - A statement that binds clients as well as servers has two halves: the broker obeys it, and it refuses
//!   a client that does not.
//! - Where something must *not* arrive, the publisher awaits its PUBACK, after which the message is in
//!   every mailbox, and then the subscriber pings: see `Client::assert_silent`.
//! - A broker may deliver a message of QoS 2 at its PUBLISH or at its PUBREL: `Client::deliver_at` goes
//!   through the whole flow.
//!
//! What cannot be tested from outside has a line in `docs/spec/untested.txt` that says why.

mod acknowledge;
mod connack;
mod connect;
mod flow_and_errors;
mod ping_disconnect_auth;
mod publish;
mod receipt_and_order;
mod state_and_qos;
mod structure;
mod subscribe;
mod topics_and_sharing;
mod unsubscribe;
