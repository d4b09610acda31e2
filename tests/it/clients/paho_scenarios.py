"""Scenarios with Eclipse Paho for Python, one per run. `tests/it/paho.rs` runs this file.

    paho_scenarios.py HOST PORT 311|5 SCENARIO NAME

A scenario is a function below; it ends with an assertion error or in silence. NAME is the prefix of
topics and client identifiers, so that runs do not meet on a shared broker. Every wait has a
deadline, none is a sleep.
"""

import queue
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 20
HOST, PORT, VERSION, SCENARIO, NAME = sys.argv[1:]
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
            assert message.properties.UserProperty == [("why", "lost")]


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


class Peer:
    """A connected client; what happens to it arrives in queues."""

    def __init__(self, role, clean=True, will=None):
        self.messages, self.grants = queue.Queue(), queue.Queue()
        self.connected, self.disconnected = queue.Queue(), threading.Event()
        options = {} if V5 else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"{NAME}-{role}",
            protocol=mqtt.MQTTv5 if V5 else mqtt.MQTTv311,
            **options,
        )
        self.client.on_connect = lambda _c, _u, flags, reason, _p: self.connected.put(
            (flags.session_present, reason)
        )
        self.client.on_disconnect = lambda *_: self.disconnected.set()
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.grants.put(reasons)
        self.client.on_message = lambda _c, _u, message: self.messages.put(message)
        if will is not None:
            will_properties = None
            if V5:
                will_properties = Properties(PacketTypes.WILLMESSAGE)
                will_properties.UserProperty = [("why", "lost")]
            self.client.will_set(*will, qos=1, properties=will_properties)
        self.connect_options = {}
        if V5:
            connect_properties = Properties(PacketTypes.CONNECT)
            connect_properties.SessionExpiryInterval = 0 if clean else 600
            self.connect_options = {"clean_start": clean, "properties": connect_properties}

    def __enter__(self):
        self.client.connect(HOST, PORT, **self.connect_options)
        self.client.loop_start()
        self.session_present, reason = self.connected.get(timeout=PATIENCE_S)
        assert not reason.is_failure, reason
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        assert self.disconnected.wait(PATIENCE_S)
        self.client.loop_stop()

    def lose_connection(self):
        """Closes the socket without a DISCONNECT."""
        self.client.loop_stop()
        self.client.socket().close()

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        (reason,) = self.grants.get(timeout=PATIENCE_S)
        assert not reason.is_failure, reason
        return reason.value

    def send(self, topic, payload, qos, retain=False, properties=None):
        return self.client.publish(topic, payload, qos, retain, properties)

    def publish(self, topic, payload, qos, retain=False, properties=None):
        """Returns once the broker has taken the message."""
        info = self.send(topic, payload, qos, retain, properties)
        info.wait_for_publish(PATIENCE_S)
        assert info.is_published()

    def receive(self):
        return self.messages.get(timeout=PATIENCE_S)


globals()[SCENARIO]()
