//! What waits for the disk: a log whose sync waits for the test shows that nothing leaves before it, and that
//! nothing else waits.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Delivery, Packet, Properties, Publish, header_len};
use mailboxqtt::ids::{ClientId, PacketId, ProtocolVersion, Qos};
use mailboxqtt::message::{Grant, Incoming, TopicHasher};
use mailboxqtt::metrics::Metrics;
use mailboxqtt::router::keeper::RetainedLimits;
use mailboxqtt::router::links::Links;
use mailboxqtt::router::mailbox::{Home, Inbox, Mail, QueueLimits};
use mailboxqtt::router::shard::{Command, Publication};
use mailboxqtt::router::sharing::Strategy;
use mailboxqtt::router::{Limits, Router};
use mailboxqtt::session::{Request, Retained};
use mailboxqtt::store::files::{Directory, Files, StoredFile};
use mailboxqtt::store::handle::Override;
use mailboxqtt::store::log::{Level, Settings};
use mailboxqtt::store::start::{Started, start_with};
use mailboxqtt::topic::TopicFilter;

const LIMITS: Limits = Limits {
    queue: QueueLimits { messages_max: 1000, bytes_max: 1_000_000 },
    retained: RetainedLimits { messages_max: 10, bytes_max: 10_000 },
    sharing: Strategy::RoundRobin,
};
/// For something that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_for_a_durable_session_is_accepted_when_it_is_synced_and_not_before() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut broker = Broker::start(Level::Always).await;
        let subscriber = broker.subscriber("durable", Home::Log).await;
        broker.publish("durable", qos, 7).await;
        // QoS 1 is delivered at once: a crash can only double it.
        assert!(matches!(next(&subscriber).await, Mail::Delivery(_)));
        broker.disk.wait_until_syncing();
        broker.router.settle().await;
        assert!(broker.publisher.is_empty(), "accepted before it was safe");

        broker.disk.open();
        assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 7, .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_durable_session_gets_waits_for_no_disk() {
    let mut broker = Broker::start(Level::Always).await;
    let _durable = broker.subscriber("durable", Home::Log).await;
    let _other = broker.subscriber("other", Home::Memory).await;
    broker.publish("durable", Qos::AtLeastOnce, 1).await;
    broker.disk.wait_until_syncing();
    broker.publish("other", Qos::AtLeastOnce, 2).await;
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 2, .. }));
    broker.publish("nobody", Qos::ExactlyOnce, 3).await;
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 3, .. }));
    broker.disk.open();
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 1, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_os_the_system_has_it_and_the_sync_comes_later() {
    let mut broker = Broker::start(Level::Os).await;
    let _subscriber = broker.subscriber("durable", Home::Log).await;
    broker.publish("durable", Qos::AtLeastOnce, 1).await;
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 1, .. }));
    assert!(broker.disk.written() > 0, "accepted before it was written");
    broker.disk.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_may_have_a_level_of_their_own() {
    let mut broker = Broker::start(Level::Always).await;
    let topics = ["durable", "fast/one", "volatile/one"];
    let mut subscribers = Vec::new();
    for topic in topics {
        subscribers.push(broker.subscriber(topic, Home::Log).await);
    }
    broker.publish("durable", Qos::AtLeastOnce, 1).await;
    broker.disk.wait_until_syncing();
    broker.publish("volatile/one", Qos::AtLeastOnce, 2).await;
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 2, .. }));
    let Mail::Delivery(delivery) = next(&subscribers[2]).await else { panic!("a delivery") };
    assert_eq!(delivery.logged_runs().count(), 0, "it is in memory only");

    // It is written when the sync before it is over, and waits for none of its own.
    broker.publish("fast/one", Qos::AtLeastOnce, 3).await;
    let Mail::Delivery(delivery) = next(&subscribers[1]).await else { panic!("a delivery") };
    assert_eq!(delivery.logged_runs().count(), 1);
    broker.disk.sync_once();
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 1, .. }));
    assert!(matches!(next(&broker.publisher).await, Mail::Accepted { turn: 3, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_sync_that_failed_nothing_is_accepted_any_more() {
    let mut broker = Broker::start(Level::Always).await;
    let subscriber = broker.subscriber("durable", Home::Log).await;
    broker.publish("durable", Qos::AtLeastOnce, 1).await;
    assert!(matches!(next(&subscriber).await, Mail::Delivery(_)));
    broker.disk.wait_until_syncing();
    broker.disk.fail();
    let why = tokio::time::timeout(PATIENCE, broker.failure.recv_async()).await.unwrap().unwrap();
    assert!(why.contains("sync"), "{why}");

    broker.publish("durable", Qos::AtLeastOnce, 2).await;
    assert!(matches!(next(&subscriber).await, Mail::Delivery(_)));
    broker.router.settle().await;
    assert!(broker.publisher.is_empty());
}

/// A router whose log is on a disk that the test holds.
struct Broker {
    router: Router,
    links: Links,
    publisher: Inbox,
    disk: Arc<Disk>,
    failure: flume::Receiver<String>,
    _started: Kept,
}

/// Lives as long as the broker.
type Kept = (mailboxqtt::store::start::Checkpointer, tempfile::TempDir);

impl Broker {
    async fn start(level: Level) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::default());
        disk.open();
        let files = Held { files: directory(folder.path()), disk: disk.clone() };
        let settings =
            Settings { segment_bytes: 64 * 1024, prepares_ahead: false, ..Settings::default() };
        let (tell, failure) = flume::bounded(1);
        let on_failure = move |why| tell.send(why).unwrap();
        let started =
            start_with(Arc::new(files), folder.path(), level, settings, on_failure).unwrap();
        let Started { store, checkpointer, .. } = started;
        let filter = |text| TopicFilter::parse(text).unwrap();
        let store = store.with_overrides(vec![
            Override { filter: filter("fast/#"), level: Some(Level::Os) },
            Override { filter: filter("volatile/#"), level: None },
        ]);
        disk.close();
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let metrics = Arc::new(Metrics::default());
        let router = Router::spawn(2, LIMITS, hasher, metrics, Some(store));
        let publisher = ClientId::new("publisher");
        Self {
            links: router.links(),
            publisher: router.open_mailbox(Some(&publisher), Home::Memory),
            router,
            disk,
            failure,
            _started: (checkpointer, folder),
        }
    }

    async fn subscriber(&mut self, topic: &str, home: Home) -> Inbox {
        let inbox = self.router.open_mailbox(Some(&ClientId::new(topic)), home);
        let grant = Grant {
            qos: Qos::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            identifier: None,
        };
        let filters = vec![(TopicFilter::parse(topic).unwrap(), grant, Retained::Skip)];
        let request = Request::Subscribe { token: 0, filters };
        self.router.request(request, inbox.mailbox(), &mut self.links);
        poll_fn(|cx| self.links.poll_flush(cx)).await;
        assert!(matches!(next(&inbox).await, Mail::PartDone { .. }));
        inbox
    }

    async fn publish(&mut self, topic: &str, qos: Qos, turn: u64) {
        let id = PacketId::FIRST;
        let delivery = match qos {
            Qos::AtMostOnce => Delivery::AtMostOnce,
            Qos::AtLeastOnce => Delivery::AtLeastOnce { id, dup: false },
            Qos::ExactlyOnce => Delivery::ExactlyOnce { id, dup: false },
        };
        let properties = Properties::EMPTY;
        let publish = Publish { topic, payload: b"payload", properties, delivery, retain: false };
        let mut frame = Vec::new();
        Packet::Publish(publish).encode(ProtocolVersion::V311, &mut frame);
        let mut collector = self.router.collector();
        collector.begin(ProtocolVersion::V311, Instant::now());
        let message = Incoming { topic, qos, retain: false, expires: false };
        collector.add(message, 0..frame.len(), header_len(&frame).unwrap() + 2);
        let mailbox = self.publisher.mailbox();
        collector.flush(&frame, |shard, batch| {
            let publication = Publication { batch, mailbox: mailbox.clone(), turn: Some(turn) };
            self.links.send(shard, Command::Publish(publication));
        });
        poll_fn(|cx| self.links.poll_flush(cx)).await;
    }
}

async fn next(inbox: &Inbox) -> Mail {
    let ready = poll_fn(|cx| inbox.poll_ready(cx));
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    inbox.try_next().unwrap()
}

fn directory(folder: &Path) -> Directory {
    Directory::open(&folder.join("log")).unwrap()
}

/// A disk whose syncs wait for the test.
#[derive(Default)]
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    has_failed: bool,
    is_syncing: bool,
    syncs_allowed: u32,
    written: u64,
}

impl Disk {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn open(&self) {
        self.change(|state| state.is_open = true);
    }

    /// The sync that waits goes on, and no other.
    fn sync_once(&self) {
        self.change(|state| state.syncs_allowed += 1);
    }

    fn close(&self) {
        self.change(|state| {
            state.is_open = false;
            state.is_syncing = false;
            state.written = 0;
        });
    }

    fn fail(&self) {
        self.change(|state| state.has_failed = true);
    }

    fn written(&self) -> u64 {
        self.state.lock().unwrap().written
    }

    fn wait_until_syncing(&self) {
        let state = self.state.lock().unwrap();
        let is_waiting = |state: &mut State| !state.is_syncing;
        let (_state, waited) =
            self.changed.wait_timeout_while(state, PATIENCE, is_waiting).unwrap();
        assert!(!waited.timed_out(), "nothing is synced");
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|state| state.is_syncing = true);
        let state = self.state.lock().unwrap();
        let is_waiting =
            |state: &mut State| !state.is_open && !state.has_failed && state.syncs_allowed == 0;
        let mut state = self.changed.wait_while(state, is_waiting).unwrap();
        state.syncs_allowed = state.syncs_allowed.saturating_sub(1);
        if state.has_failed { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Whatever waits must be able to end.
        self.disk.open();
    }
}

struct Held {
    files: Directory,
    disk: Arc<Disk>,
}

struct HeldFile {
    file: Arc<dyn StoredFile>,
    disk: Arc<Disk>,
}

impl Held {
    fn hold(&self, file: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        Arc::new(HeldFile { file, disk: self.disk.clone() })
    }
}

impl Files for Held {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        Ok(self.hold(self.files.open(name)?))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StoredFile>> {
        Ok(self.hold(self.files.create(name, bytes)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.files.sync_dir()
    }
}

impl StoredFile for HeldFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)?;
        self.disk.change(|state| state.written += bytes.len() as u64);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync()?;
        self.file.sync_data()
    }
}
