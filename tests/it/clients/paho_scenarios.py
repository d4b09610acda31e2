"""Scenarios with Eclipse Paho for Python, one per run. `tests/it/paho.rs` runs this file.

    paho_scenarios.py HOST PORT 311|5 SCENARIO NAME [tcp|websockets [CA]]

A scenario is a function below; it ends with an assertion error or in silence. NAME is the prefix of
topics and client identifiers, so that runs do not meet on a shared broker. Every wait has a
deadline, none is a sleep.
"""

import contextlib
import queue
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 20
HOST, PORT, VERSION, SCENARIO, NAME = sys.argv[1:6]
TRANSPORT = sys.argv[6] if len(sys.argv) > 6 else "tcp"
CA = sys.argv[7] if len(sys.argv) > 7 else None
PORT = int(PORT)
V5 = VERSION == "5"


def round_trip_at_each_qos():
    with Peer("echo") as peer:
        for qos in (0, 1, 2):
            topic = f"{NAME}/{qos}"
            assert peer.subscribe(topic, qos) == qos
            peer.publish(topic, "hello", qos)
            message = peer.receive()
            assert (message.topic, message.payload, message.qos) == (topic, b"hello", qos)


def resumed_session_gets_its_queued_messages():
    topic = f"{NAME}/queued"
    with Peer("keeper", clean=False) as keeper:
        assert not keeper.session_present
        keeper.subscribe(topic, 2)

    sent = [(qos, f"{n} at {qos}".encode()) for n in range(20) for qos in (1, 2)]
    with Peer("sender") as sender:
        for qos, payload in sent:
            sender.publish(topic, payload, qos)

    with Peer("keeper", clean=False) as keeper:
        assert keeper.session_present
        received = [keeper.receive() for _ in sent]
        # Order is promised among the messages of one QoS.
        for qos in (1, 2):
            expected = [payload for at, payload in sent if at == qos]
            assert [m.payload for m in received if m.qos == qos] == expected

    with Peer("keeper", clean=True) as keeper:
        assert not keeper.session_present


def will_follows_a_lost_connection_and_not_a_clean_one():
    topic = f"{NAME}/will"
    with Peer("watcher") as watcher:
        watcher.subscribe(topic, 2)

        with Peer("polite", will=(topic, "must not come")):
            pass
        with Peer("polite") as polite:
            polite.publish(topic, "polite is back", 1)
        assert watcher.receive().payload == b"polite is back"

        Peer("doomed", will=(topic, "gone")).__enter__().lose_connection()
        message = watcher.receive()
        assert (message.payload, message.qos, message.retain) == (b"gone", 1, False)
        if V5:
            assert message.properties.UserProperty == [("why", "lost"), ("k", "1"), ("why", "again")]


def retained_message_is_kept_replaced_and_cleared():
    topic = f"{NAME}/retained"
    with Peer("sender") as sender, Peer("early") as early:
        early.subscribe(topic, 1)
        for payload in (b"first", b"second"):
            sender.publish(topic, payload, 1, retain=True)
            message = early.receive()
            assert (message.payload, message.retain) == (payload, False)

        with Peer("late") as late:
            late.subscribe(f"{NAME}/#", 1)
            message = late.receive()
            assert (message.topic, message.payload) == (topic, b"second")
            assert message.retain

        sender.publish(topic, b"", 1, retain=True)
        assert early.receive().payload == b""
        with Peer("last") as last:
            last.subscribe(topic, 1)
            sender.publish(topic, b"live", 1)
            assert last.receive().payload == b"live"


def thousand_messages_at_qos_2_arrive_exactly_once():
    topic = f"{NAME}/once"
    with Peer("receiver") as receiver, Peer("sender") as sender:
        receiver.subscribe(topic, 2)
        pending = [sender.send(topic, str(n), 2) for n in range(1000)]
        for info in pending:
            info.wait_for_publish(PATIENCE_S)
            assert info.is_published()
        sender.publish(topic, "end", 2)

        received = [receiver.receive() for _ in range(1001)]
        expected = [str(n).encode() for n in range(1000)] + [b"end"]
        assert [message.payload for message in received] == expected
        assert all(message.qos == 2 for message in received)


def properties_are_forwarded_and_user_properties_keep_their_order():
    topic = f"{NAME}/properties"
    pairs = [("k", "1"), ("other", "ü"), ("k", "3"), ("a", "")]
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = pairs
    properties.ContentType = "text/plain"
    properties.ResponseTopic = f"{NAME}/answers"
    properties.CorrelationData = bytes(range(256))
    properties.PayloadFormatIndicator = 1
    properties.MessageExpiryInterval = 600

    with Peer("receiver") as receiver, Peer("sender") as sender:
        receiver.subscribe(topic, 2)
        for qos in (0, 1, 2):
            sender.publish(topic, "hello", qos, properties=properties)
            got = receiver.receive().properties
            assert got.UserProperty == pairs, got.UserProperty
            assert got.ContentType == "text/plain"
            assert got.ResponseTopic == f"{NAME}/answers"
            assert got.CorrelationData == bytes(range(256))
            assert got.PayloadFormatIndicator == 1
            assert 0 < got.MessageExpiryInterval <= 600


def suback_and_unsuback_answer_each_filter_in_order():
    filters = [f"{NAME}/{n}" for n in range(3)] + ["/".join("+" * 201), f"{NAME}/last"]
    with Peer("many") as peer:
        grants = peer.subscribe_all([(filter, qos) for filter, qos in zip(filters, (0, 1, 2, 0, 1))])
        assert grants == [0, 1, 2, 0x8F, 1], grants
        peer.client.unsubscribe([filters[0], f"{NAME}/never", filters[4]])
        reasons = [reason.value for reason in peer.unsubscribed.get(timeout=PATIENCE_S)]
        assert reasons == [0, 0x11, 0], reasons


def puback_says_what_became_of_the_message():
    with Peer("sender") as sender, Peer("receiver") as receiver:
        topic = f"{NAME}/answered"
        assert sender.publish(topic, "nobody hears it", 1) == 0x10
        assert sender.publish("$SYS/broker/uptime", "an hour", 1) == 0x87
        receiver.subscribe(topic, 1)
        assert sender.publish(topic, "heard", 1) == 0
        assert receiver.receive().payload == b"heard"


def one_copy_carries_the_identifiers_of_all_subscriptions_that_match():
    topic = f"{NAME}/one/two"
    with Peer("sender") as sender, Peer("receiver") as receiver:
        sender.publish(topic, "retained", 1, retain=True)
        for filter, identifier in ((f"{NAME}/#", 1), (f"{NAME}/+/two", 268_435_455), (topic, None)):
            receiver.subscribe(filter, 1, identifier=identifier)
            message = receiver.receive()
            assert (message.payload, message.retain) == (b"retained", True)
            assert identifiers(message) == ([] if identifier is None else [identifier])

        for qos in (0, 1):
            sender.publish(topic, f"live {qos}", qos)
            message = receiver.receive()
            assert message.payload == f"live {qos}".encode()
            assert identifiers(message) == [1, 268_435_455]
        receiver.subscribe(f"{NAME}/#", 1, identifier=2)
        assert identifiers(receiver.receive()) == [2]
        sender.publish(topic, "last", 1)
        assert identifiers(receiver.receive()) == [2, 268_435_455]


def identifiers(message):
    """Of its subscriptions; their order means nothing."""
    return sorted(getattr(message.properties, "SubscriptionIdentifier", []))


def subscription_options_are_applied():
    topic, Options = f"{NAME}/options", mqtt.SubscribeOptions
    with Peer("sender") as sender, Peer("other") as other:
        sender.publish(topic, "retained", 1, retain=True)
        # Nothing is sent: the first does not want it, the second is not new.
        sender.subscribe_all([(topic, Options(1, noLocal=True, retainHandling=2))])
        sender.subscribe_all([(topic, Options(1, noLocal=True, retainHandling=1))])
        other.subscribe_all([(topic, Options(1, retainAsPublished=True, retainHandling=1))])
        message = other.receive()
        assert (message.payload, message.retain) == (b"retained", True)

        sender.publish(topic, "own", 1, retain=True)
        message = other.receive()
        assert (message.payload, message.retain) == (b"own", True)
        other.publish(topic, "of another", 1)
        message = sender.receive()
        assert (message.payload, message.retain) == (b"of another", False)
        assert not other.receive().retain


def no_more_messages_are_on_their_way_than_the_client_takes():
    topic = f"{NAME}/window"
    with Peer("sender") as sender, Peer("slow", ReceiveMaximum=3, manual_ack=True) as slow:
        slow.subscribe(topic, 1)
        for n in range(10):
            sender.publish(topic, str(n), 1)
        for n in range(10):
            slow.settle()
            assert len(slow.open) + slow.messages.qsize() == min(3, 10 - n)
            while not slow.messages.empty():
                slow.open.append(slow.receive())
            oldest = slow.open.pop(0)
            assert oldest.payload == str(n).encode()
            slow.client.ack(oldest.mid, 1)


def client_learns_what_the_broker_takes_and_gets_a_name():
    peer = Peer("", name="")
    with peer:
        said = peer.connack
        assert len(said.AssignedClientIdentifier) > 0
        assert said.ReceiveMaximum > 0
        assert said.TopicAliasMaximum > 0


def session_goes_on_as_it_was_until_its_expiry_and_not_after():
    topic = f"{NAME}/session"
    with Peer("sender") as sender, Peer("watcher") as watcher:
        watcher.subscribe(f"{NAME}/end", 1)
        # Unacknowledged messages, with a subscription identifier and properties, come again as they were.
        slow = Peer("keeper", clean=False, SessionExpiryInterval=600, manual_ack=True)
        with slow as keeper:
            keeper.subscribe(topic, 1, identifier=7)
            sender.publish(topic, "unacknowledged", 1, properties=publish_properties([("k", "v")]))
            assert keeper.receive().payload == b"unacknowledged"
        sender.publish(topic, "queued", 1)

        # The will waits for the end of the session and tells of it.
        will = {"will": (f"{NAME}/end", "session is over"), "will_delay": 3600}
        keeper = Peer("keeper", clean=False, SessionExpiryInterval=1, **will).__enter__()
        assert keeper.session_present
        message = keeper.receive()
        assert (message.payload, message.dup) == (b"unacknowledged", True)
        assert message.properties.UserProperty == [("k", "v")]
        assert identifiers(message) == [7]
        assert keeper.receive().payload == b"queued"
        before = time.monotonic()
        keeper.lose_connection()
        assert watcher.receive().payload == b"session is over"
        assert time.monotonic() - before >= 1

        with Peer("keeper", clean=False) as keeper:
            assert not keeper.session_present


def disconnect_may_end_the_session():
    for expiry, stays in ((None, True), (0, False), (500, True)):
        keeper = Peer("keeper", clean=False, SessionExpiryInterval=600).__enter__()
        keeper.disconnect(expiry)
        with Peer("keeper", clean=False, SessionExpiryInterval=600) as keeper:
            assert keeper.session_present == stays, expiry
        with Peer("keeper", clean=True) as keeper:
            assert not keeper.session_present


def will_waits_for_its_delay_unless_its_client_is_back():
    topic = f"{NAME}/will"
    with Peer("watcher") as watcher:
        watcher.subscribe(topic, 1)
        mortal = {"clean": False, "SessionExpiryInterval": 600}
        doomed = Peer("doomed", will=(topic, "gone"), will_delay=1, **mortal).__enter__()
        before = time.monotonic()
        doomed.lose_connection()
        message = watcher.receive()
        assert time.monotonic() - before >= 1
        assert (message.payload, message.qos, message.retain) == (b"gone", 1, False)
        assert message.properties.UserProperty == [("why", "lost"), ("k", "1"), ("why", "again")]
        assert not hasattr(message.properties, "WillDelayInterval")

        will = {"will": (topic, "waits"), "will_delay": 3600}
        for is_back in (True, False):
            Peer("back", **will, **mortal).__enter__().lose_connection()
            if is_back:
                with Peer("back", **mortal) as back:
                    assert back.session_present
            # A clean start ends the session, and with it the waiting of a will.
            with Peer("back") as back:
                back.publish(topic, "next", 1)
            if not is_back:
                assert watcher.receive().payload == b"waits"
            assert watcher.receive().payload == b"next"


def group_shares_messages_and_those_of_a_member_that_is_lost_go_to_the_others():
    topic, shared = f"{NAME}/work", f"$share/crew/{NAME}/work"
    with Peer("sender") as sender, Peer("one") as one, Peer("two") as two:
        sender.publish(topic, "retained, not for the group", 1, retain=True)
        lost = Peer("lost", manual_ack=True).__enter__()
        for member in (one, two, lost):
            member.subscribe(shared, 1)
        sent = [str(n).encode() for n in range(90)]
        for payload in sent:
            assert sender.publish(topic, payload, 1) == 0
        lost.settle()
        assert lost.messages.qsize() > 0
        lost.lose_connection()

        received = [next_of(one, two) for _ in sent]
        assert sorted(int(message.payload) for message in received) == list(range(90))
        for member in (one, two):
            member.settle()
            assert member.messages.empty()


def next_of(*peers):
    """The next message of any of them."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for peer in peers:
            # Each in turn for a moment: two queues cannot be waited for at once.
            with contextlib.suppress(queue.Empty):
                return peer.messages.get(timeout=0.01)
        assert time.monotonic() < deadline


def topic_aliases_stand_for_topics_in_both_directions():
    with Peer("sender") as sender, Peer("receiver", TopicAliasMaximum=2) as receiver:
        receiver.subscribe(f"{NAME}/#", 1)
        topics = [f"{NAME}/{letter}" for letter in "abc"]
        for qos in (0, 1):
            for alias, topic in enumerate(topics, start=1):
                sender.publish(topic, "named", qos, properties=publish_properties(alias=alias))
        for qos in (0, 1):
            for alias in (3, 1, 2):
                sender.publish("", str(alias), qos, properties=publish_properties(alias=alias))

        # The receiver is given aliases for as many topics as it takes.
        learnt, received = {}, []
        for _ in range(12):
            message = receiver.receive()
            alias = getattr(message.properties, "TopicAlias", None)
            topic = message.topic or learnt[alias]
            if alias is not None:
                assert 1 <= alias <= 2
                learnt[alias] = topic
            received.append((topic, message.payload.decode(), bool(message.topic)))
        assert len(learnt) == 2
        named = [(topic, text) for topic, text, _ in received if text == "named"]
        assert sorted(named) == sorted((topic, "named") for topic in topics * 2)
        numbered = [(topic, text) for topic, text, _ in received if text != "named"]
        assert sorted(numbered) == sorted((topics[n - 1], str(n)) for n in (1, 2, 3) * 2)
        by_alias_alone = [topic for topic, _, is_named in received if not is_named]
        assert sorted(by_alias_alone) == sorted(list(learnt.values()) * 3)


def client_is_told_that_its_session_was_taken_over():
    first = Peer("twin").__enter__()
    with Peer("twin"):
        assert first.disconnected.wait(PATIENCE_S)
        assert first.reason.value == 0x8E
        first.client.loop_stop()


def publish_properties(user=(), alias=None):
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = list(user)
    if alias is not None:
        properties.TopicAlias = alias
    return properties


class Peer:
    """A connected client; what happens to it arrives in queues. `said` are properties of its CONNECT."""

    def __init__(self, role, clean=True, will=None, will_delay=0, name=None, manual_ack=False, **said):
        self.messages, self.grants, self.unsubscribed = queue.Queue(), queue.Queue(), queue.Queue()
        self.connected, self.disconnected = queue.Queue(), threading.Event()
        # Received and, with `manual_ack`, not acknowledged.
        self.open = []
        # Why messages were acknowledged as they were, by identifier.
        self.reasons = {}
        options = {} if V5 else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"{NAME}-{role}" if name is None else name,
            protocol=mqtt.MQTTv5 if V5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=manual_ack,
            transport=TRANSPORT,
            **options,
        )
        if CA is not None:
            self.client.tls_set(CA)
        self.client.on_connect = lambda _c, _u, flags, reason, properties: self.connected.put(
            (flags.session_present, reason, properties)
        )
        self.client.on_disconnect = self.on_disconnect
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.grants.put(reasons)
        self.client.on_unsubscribe = lambda _c, _u, _m, reasons, _p: self.unsubscribed.put(reasons)
        self.client.on_publish = lambda _c, _u, mid, reason, _p: self.reasons.update({mid: reason})
        self.client.on_message = lambda _c, _u, message: self.messages.put(message)
        if will is not None:
            will_properties = None
            if V5:
                will_properties = Properties(PacketTypes.WILLMESSAGE)
                will_properties.UserProperty = [("why", "lost"), ("k", "1"), ("why", "again")]
                will_properties.WillDelayInterval = will_delay
            self.client.will_set(*will, qos=1, properties=will_properties)
        self.connect_options = {}
        if V5:
            connect_properties = Properties(PacketTypes.CONNECT)
            connect_properties.SessionExpiryInterval = 0 if clean else 600
            for property, value in said.items():
                setattr(connect_properties, property, value)
            self.connect_options = {"clean_start": clean, "properties": connect_properties}

    def __enter__(self):
        self.client.connect(HOST, PORT, **self.connect_options)
        self.client.loop_start()
        self.session_present, reason, self.connack = self.connected.get(timeout=PATIENCE_S)
        assert not reason.is_failure, reason
        return self

    def __exit__(self, *_):
        self.disconnect()

    def disconnect(self, expiry=None):
        """With another session expiry interval, if there is one."""
        properties = None
        if expiry is not None:
            properties = Properties(PacketTypes.DISCONNECT)
            properties.SessionExpiryInterval = expiry
        self.client.disconnect(properties=properties)
        assert self.disconnected.wait(PATIENCE_S)
        self.client.loop_stop()

    def on_disconnect(self, _client, _userdata, _flags, reason, _properties):
        self.reason = reason
        self.disconnected.set()

    def lose_connection(self):
        """Closes the socket without a DISCONNECT."""
        self.client.loop_stop()
        self.client.socket().close()

    def subscribe(self, topic, qos, identifier=None):
        properties = None
        if identifier is not None:
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = identifier
        if V5:
            qos = mqtt.SubscribeOptions(qos)
        (reason,) = self.subscribe_all([(topic, qos)], properties)
        assert reason < 0x80, reason
        return reason

    def subscribe_all(self, filters, properties=None):
        """Returns the codes of SUBACK."""
        if V5:
            options = mqtt.SubscribeOptions
            filters = [(f, options(o) if isinstance(o, int) else o) for f, o in filters]
        self.client.subscribe(filters, properties=properties)
        return [reason.value for reason in self.grants.get(timeout=PATIENCE_S)]

    def settle(self):
        """When this returns, all has come that was in the mailbox before and that the broker may send: the broker
        answers a read before it sends the mail that it took with it, so the second answer is behind that."""
        for n in range(2):
            self.subscribe(f"{NAME}/settled/{n}", 0)

    def send(self, topic, payload, qos, retain=False, properties=None):
        return self.client.publish(topic, payload, qos, retain, properties)

    def publish(self, topic, payload, qos, retain=False, properties=None):
        """Returns once the broker has taken the message: the reason code of its last acknowledgement."""
        info = self.send(topic, payload, qos, retain, properties)
        info.wait_for_publish(PATIENCE_S)
        assert info.is_published()
        return self.reasons[info.mid].value if qos > 0 else 0

    def receive(self):
        return self.messages.get(timeout=PATIENCE_S)


globals()[SCENARIO]()
