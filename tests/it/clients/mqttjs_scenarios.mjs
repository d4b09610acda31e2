// Scenarios with MQTT.js, one per run. `tests/it/mqttjs.rs` runs this file.
//
//     node mqttjs_scenarios.mjs FOLDER HOST PORT 4|5 SCENARIO NAME [mqtt|mqtts|ws|wss [CA]]
//
// FOLDER is where MQTT.js is installed. A scenario is a function of `scenarios`; it ends with an
// assertion error or in silence. NAME is the prefix of topics and client identifiers, so that runs
// do not meet on a shared broker. Every wait has a deadline, none is a sleep.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const PATIENCE_MS = 20_000;
const WINDOW = 20;
const [folder, host, port, version, scenario, name, protocol = "mqtt", authority] =
  process.argv.slice(2);
const ca = authority && readFileSync(authority);
const mqtt = createRequire(join(folder, "package.json"))("mqtt");
const v5 = version === "5";

const scenarios = {
  async roundTripAtEachQos() {
    const peer = await Peer.connect("echo");
    for (const qos of [0, 1, 2]) {
      const topic = `${name}/${qos}`;
      assert.equal(await peer.subscribe(topic, qos), qos);
      await peer.publish(topic, "hello", { qos });
      const message = await peer.receive();
      assert.deepEqual([message.topic, message.text, message.qos], [topic, "hello", qos]);
    }
    await peer.disconnect();
  },

  async resumedSessionGetsItsQueuedMessages() {
    const topic = `${name}/queued`;
    let keeper = await Peer.connect("keeper", { clean: false });
    assert.equal(keeper.sessionPresent, false);
    await keeper.subscribe(topic, 2);
    await keeper.disconnect();

    const sender = await Peer.connect("sender");
    const sent = [];
    for (let n = 0; n < 20; n += 1) {
      for (const qos of [1, 2]) {
        sent.push({ qos, text: `${n} at ${qos}` });
        await sender.publish(topic, `${n} at ${qos}`, { qos });
      }
    }
    await sender.disconnect();

    keeper = await Peer.connect("keeper", { clean: false });
    assert.equal(keeper.sessionPresent, true);
    const received = [];
    while (received.length < sent.length) received.push(await keeper.receive());
    // Order is promised among the messages of one QoS.
    for (const qos of [1, 2]) {
      const texts = (list) => list.filter((m) => m.qos === qos).map((m) => m.text);
      assert.deepEqual(texts(received), texts(sent));
    }
    await keeper.disconnect();

    keeper = await Peer.connect("keeper", { clean: true });
    assert.equal(keeper.sessionPresent, false);
    await keeper.disconnect();
  },

  async willFollowsALostConnectionAndNotACleanOne() {
    const topic = `${name}/will`;
    const watcher = await Peer.connect("watcher");
    await watcher.subscribe(topic, 2);

    let polite = await Peer.connect("polite", { will: will(topic, "must not come") });
    await polite.disconnect();
    polite = await Peer.connect("polite");
    await polite.publish(topic, "polite is back", { qos: 1 });
    await polite.disconnect();
    assert.equal((await watcher.receive()).text, "polite is back");

    const doomed = await Peer.connect("doomed", { will: will(topic, "gone") });
    await doomed.loseConnection();
    const message = await watcher.receive();
    assert.deepEqual([message.text, message.qos, message.retain], ["gone", 1, false]);
    if (v5) {
      const { userProperties } = message.properties;
      assert.deepEqual({ ...userProperties }, { why: ["lost", "again"], k: "1" });
    }
    await watcher.disconnect();
  },

  async retainedMessageIsKeptReplacedAndCleared() {
    const topic = `${name}/retained`;
    const [sender, early] = [await Peer.connect("sender"), await Peer.connect("early")];
    await early.subscribe(topic, 1);
    for (const text of ["first", "second"]) {
      await sender.publish(topic, text, { qos: 1, retain: true });
      const message = await early.receive();
      assert.deepEqual([message.text, message.retain], [text, false]);
    }

    const late = await Peer.connect("late");
    await late.subscribe(`${name}/#`, 1);
    const message = await late.receive();
    assert.deepEqual([message.topic, message.text, message.retain], [topic, "second", true]);
    await late.disconnect();

    await sender.publish(topic, "", { qos: 1, retain: true });
    assert.equal((await early.receive()).text, "");
    const last = await Peer.connect("last");
    await last.subscribe(topic, 1);
    await sender.publish(topic, "live", { qos: 1 });
    assert.equal((await last.receive()).text, "live");
    for (const peer of [sender, early, last]) await peer.disconnect();
  },

  async thousandMessagesAtQos2ArriveExactlyOnce() {
    const topic = `${name}/once`;
    const [receiver, sender] = [await Peer.connect("receiver"), await Peer.connect("sender")];
    await receiver.subscribe(topic, 2);
    const expected = Array.from({ length: 1000 }, (_, n) => `${n}`);
    // MQTT.js has no sending window of its own and would exceed the broker's Receive Maximum.
    for (let n = 0; n < expected.length; n += WINDOW) {
      const window = expected.slice(n, n + WINDOW);
      await Promise.all(window.map((text) => sender.publish(topic, text, { qos: 2 })));
    }
    await sender.publish(topic, "end", { qos: 2 });

    const received = [];
    while (received.length < 1001) received.push(await receiver.receive());
    assert.deepEqual(received.map((message) => message.text), [...expected, "end"]);
    assert.ok(received.every((message) => message.qos === 2));
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async propertiesAreForwardedAndUserPropertiesKeepTheirOrder() {
    const topic = `${name}/properties`;
    const sent = {
      userProperties: { k: ["1", "3"], other: "ü", a: "" },
      contentType: "text/plain",
      responseTopic: `${name}/answers`,
      correlationData: Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
      payloadFormatIndicator: true,
      messageExpiryInterval: 600,
    };
    const [receiver, sender] = [await Peer.connect("receiver"), await Peer.connect("sender")];
    await receiver.subscribe(topic, 2);
    for (const qos of [0, 1, 2]) {
      await sender.publish(topic, "hello", { qos, properties: sent });
      const got = (await receiver.receive()).properties;
      assert.deepEqual(Object.entries(got.userProperties), Object.entries(sent.userProperties));
      assert.equal(got.contentType, sent.contentType);
      assert.equal(got.responseTopic, sent.responseTopic);
      assert.deepEqual(got.correlationData, sent.correlationData);
      assert.equal(got.payloadFormatIndicator, true);
      assert.ok(got.messageExpiryInterval > 0 && got.messageExpiryInterval <= 600);
    }
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async acknowledgementsSayWhatBecameOfTheRequest() {
    const [sender, receiver] = [await Peer.connect("sender"), await Peer.connect("receiver")];
    const topic = `${name}/answered`;
    const codes = async (text) => {
      for (const qos of [1, 2]) await sender.publish(topic, text, { qos });
      const isAnswer = ({ cmd }) => cmd === "puback" || cmd === "pubrec";
      return sender.packetsReceived.splice(0).filter(isAnswer).map(({ reasonCode }) => reasonCode);
    };
    assert.deepEqual(await codes("nobody hears it"), [0x10, 0x10]);
    await receiver.subscribe(topic, 2);
    assert.deepEqual(await codes("heard"), [0, 0]);
    await assert.rejects(sender.publish("$SYS/broker/uptime", "an hour", { qos: 1 }), {
      code: 0x87,
    });
    const { granted } = await receiver.subscribeAll({
      [`${name}/0`]: { qos: 0 },
      [Array(201).fill("+").join("/")]: { qos: 0 },
      [`${name}/2`]: { qos: 2 },
    });
    assert.deepEqual(granted, [0, 0x8f, 2]);
    receiver.packetsReceived.length = 0;
    await receiver.client.unsubscribeAsync([topic, `${name}/never`]);
    const unsuback = receiver.packetsReceived.find(({ cmd }) => cmd === "unsuback");
    assert.deepEqual([...unsuback.granted], [0, 0x11]);
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async oneCopyCarriesTheIdentifiersOfAllSubscriptionsThatMatch() {
    const topic = `${name}/one/two`;
    const [sender, receiver] = [await Peer.connect("sender"), await Peer.connect("receiver")];
    // Their order means nothing.
    const identifiers = async (text) => {
      const message = await receiver.receive();
      assert.equal(message.text, text);
      return [message.properties?.subscriptionIdentifier ?? []].flat().sort((a, b) => a - b);
    };
    await sender.publish(topic, "retained", { qos: 1, retain: true });
    await receiver.subscribe(`${name}/#`, 1, { subscriptionIdentifier: 1 });
    assert.deepEqual(await identifiers("retained"), [1]);
    await receiver.subscribe(`${name}/+/two`, 1, { subscriptionIdentifier: 268_435_455 });
    assert.deepEqual(await identifiers("retained"), [268_435_455]);
    await receiver.subscribe(topic, 1);
    assert.deepEqual(await identifiers("retained"), []);
    for (const qos of [0, 1]) {
      await sender.publish(topic, "live", { qos });
      assert.deepEqual(await identifiers("live"), [1, 268_435_455]);
    }
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async aliasesAreAssignedByTheClientAndMovedWhenThereAreNoMore() {
    const sender = await Peer.connect("sender", { autoAssignTopicAlias: true });
    const receiver = await Peer.connect("receiver");
    await receiver.subscribe(`${name}/+`, 1);
    const { topicAliasMaximum } = sender.connack.properties;
    assert.ok(topicAliasMaximum > 0);
    // In the third round all aliases have another topic than in the first.
    const topics = (from) =>
      Array.from({ length: topicAliasMaximum }, (_, n) => `${name}/${from + n}`);
    const rounds = [topics(0), topics(0), topics(1000), topics(1000), topics(0)];
    for (const [round, list] of rounds.entries()) {
      for (const [n, topic] of list.entries()) {
        await sender.publish(topic, `${round}`, { qos: n % 2 });
      }
    }
    const sent = rounds.flatMap((list, round) => list.map((t, n) => [t, `${round}`, n % 2]));
    await receiveAll(receiver, sent);

    const publishes = sender.packetsSent.filter(({ cmd }) => cmd === "publish");
    const without = publishes.filter(({ topic }) => topic === "").length;
    assert.equal(without, 2 * topicAliasMaximum);
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async aliasesThatTheCallerHasSetAreUsedByTheClient() {
    const sender = await Peer.connect("sender", { autoUseTopicAlias: true });
    const receiver = await Peer.connect("receiver");
    const [topic, other] = [`${name}/topic`, `${name}/other`];
    await receiver.subscribe(`${name}/+`, 1);
    await sender.publish(topic, "named", { qos: 1, properties: { topicAlias: 1 } });
    await sender.publish(topic, "by alias", { qos: 1 });
    await sender.publish(other, "named", { qos: 1, properties: { topicAlias: 1 } });
    await sender.publish(other, "by alias", { qos: 1 });
    await sender.publish(topic, "without alias", { qos: 1 });
    const received = [];
    while (received.length < 5) {
      const { topic, text } = await receiver.receive();
      received.push([topic, text]);
    }
    const of = (wanted) => received.filter(([got]) => got === wanted).map(([, text]) => text);
    assert.deepEqual(of(topic), ["named", "by alias", "without alias"]);
    assert.deepEqual(of(other), ["named", "by alias"]);
    const sent = sender.packetsSent.filter(({ cmd }) => cmd === "publish");
    assert.deepEqual(sent.map((packet) => packet.topic), [topic, "", other, "", topic]);
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async brokerUsesAsManyAliasesAsTheClientTakes() {
    const sender = await Peer.connect("sender");
    const receiver = await Peer.connect("receiver", { properties: { topicAliasMaximum: 2 } });
    await receiver.subscribe(`${name}/+`, 1);
    const topics = ["a", "b", "c"].map((letter) => `${name}/${letter}`);
    // MQTT.js forgets the topic of a QoS 2 message that came by alias, so there is none.
    const sent = [0, 1, 0, 1].flatMap((qos, round) => topics.map((t) => [t, `${round}`, qos]));
    for (const [topic, text, qos] of sent) await sender.publish(topic, text, { qos });
    await receiveAll(receiver, sent);

    const publishes = receiver.packetsReceived.filter(({ cmd }) => cmd === "publish");
    const aliases = new Set(publishes.map((packet) => packet.properties?.topicAlias));
    assert.deepEqual(aliases, new Set([1, 2, undefined]));
    const named = publishes.filter(({ topic }) => topic !== "");
    // Two topics got an alias: each of them was named once, the third always.
    assert.equal(new Set(named.map(({ topic }) => topic)).size, 3);
    assert.equal(named.length, 2 + 4);
    for (const peer of [sender, receiver]) await peer.disconnect();
  },

  async clientThatReconnectsGoesOnWithItsSession() {
    const topic = `${name}/session`;
    const properties = { sessionExpiryInterval: 600 };
    const sender = await Peer.connect("sender");
    const keeper = await Peer.connect("keeper", { clean: false, properties });
    await keeper.subscribe(topic, 1, { subscriptionIdentifier: 7 });
    await keeper.subscribe(`${name}/echo`, 1);
    for (let round = 0; round < 3; round += 1) {
      await keeper.loseConnection();
      await sender.publish(topic, `queued ${round}`, { qos: 1 });
      // MQTT.js keeps it and sends it as soon as it is connected.
      const publishing = keeper.publish(`${name}/echo`, `own ${round}`, { qos: 1 });
      await keeper.reconnect();
      await publishing;
      assert.equal(keeper.connack.sessionPresent, true);
      const received = [await keeper.receive(), await keeper.receive()];
      const texts = received.map(({ text }) => text).sort();
      assert.deepEqual(texts, [`own ${round}`, `queued ${round}`]);
      const queued = received.find((message) => message.topic === topic);
      assert.equal(queued.properties.subscriptionIdentifier, 7);
    }

    // DISCONNECT may end the session; MQTT.js would subscribe again, so another client looks.
    await keeper.disconnect({ properties: { sessionExpiryInterval: 0 } });
    const again = await Peer.connect("keeper", { clean: false, properties });
    assert.equal(again.connack.sessionPresent, false);
    for (const peer of [sender, again]) await peer.disconnect();
  },

  async sessionEndsAtItsExpiryAndItsWillDoesNotWaitForLonger() {
    const topic = `${name}/will`;
    const watcher = await Peer.connect("watcher");
    await watcher.subscribe(topic, 1);
    const properties = { sessionExpiryInterval: 1 };
    const doomed = await Peer.connect("doomed", {
      clean: false,
      properties,
      will: will(topic, "session is over", { willDelayInterval: 3600, contentType: "text/plain" }),
    });
    const before = performance.now();
    await doomed.loseConnection();
    const message = await watcher.receive();
    assert.ok(performance.now() - before >= 1000);
    assert.deepEqual([message.text, message.properties.contentType], [
      "session is over",
      "text/plain",
    ]);
    const again = await Peer.connect("doomed", { clean: false, properties });
    assert.equal(again.connack.sessionPresent, false);
    for (const peer of [watcher, again]) await peer.disconnect();
  },

  async groupSharesMessages() {
    const [topic, filter] = [`${name}/work`, `$share/crew/${name}/work`];
    const sender = await Peer.connect("sender");
    const members = [await Peer.connect("one"), await Peer.connect("two")];
    for (const [n, member] of members.entries()) {
      await member.subscribe(filter, 2);
      await member.subscribe(`${name}/end/${n}`, 2);
    }
    const texts = Array.from({ length: 40 }, (_, n) => `${n}`);
    for (const qos of [0, 1, 2]) {
      for (const text of texts) await sender.publish(topic, text, { qos });
      // When the shard has this it has those, too, which at QoS 0 nobody acknowledges.
      await sender.publish(topic, "last", { qos: Math.max(qos, 1) });
      const received = [];
      for (const [n, member] of members.entries()) {
        // What the member was given is in its mailbox, ahead of that of the same QoS.
        for (const q of [0, 1, 2]) await sender.publish(`${name}/end/${n}`, "end", { qos: q });
        const share = [];
        for (let ends = 0; ends < 3; ) {
          const { text } = await member.receive();
          if (text === "end") ends += 1;
          else share.push(text);
        }
        assert.ok(share.length > 0);
        received.push(...share);
      }
      assert.deepEqual(received.sort(), [...texts, "last"].sort());
    }
    for (const peer of [sender, ...members]) await peer.disconnect();
  },

  async clientIsToldThatItsSessionWasTakenOver() {
    const first = await Peer.connect("twin");
    const told = inTime("the disconnect", (done) => first.client.once("disconnect", done));
    const second = await Peer.connect("twin");
    assert.equal((await told).reasonCode, 0x8e);
    await second.disconnect();
  },
};

/** What comes is `sent`, a list of topic, text and QoS; on each topic in the order of each QoS. */
async function receiveAll(receiver, sent) {
  const received = [];
  while (received.length < sent.length) {
    const { topic, text, qos } = await receiver.receive();
    received.push([topic, text, qos]);
  }
  const inOrder = (list) => [...list].sort(([a, , p], [b, , q]) => a.localeCompare(b) || p - q);
  assert.deepEqual(inOrder(received), inOrder(sent));
}

function will(topic, payload, more = {}) {
  const properties = v5 ? { userProperties: { why: ["lost", "again"], k: "1" }, ...more } : undefined;
  return { topic, payload: Buffer.from(payload), qos: 1, retain: false, properties };
}

/** A connected client; messages that nobody has asked for yet wait in a list. */
class Peer {
  static async connect(role, { clean = true, will, properties, ...options } = {}) {
    const peer = new Peer();
    peer.messages = [];
    peer.waiting = undefined;
    // Copies, for MQTT.js changes them later.
    peer.packetsSent = [];
    peer.packetsReceived = [];
    const expiry = { sessionExpiryInterval: clean ? 0 : 600 };
    peer.client = mqtt.connect({
      host,
      port: Number(port),
      protocol,
      path: "/mqtt",
      ca,
      protocolVersion: Number(version),
      clientId: `${name}-${role}`,
      clean,
      will,
      reconnectPeriod: 0,
      properties: v5 ? { ...expiry, ...properties } : undefined,
      ...options,
    });
    // Set before the connection stands: a resumed session gets its messages at once.
    peer.client.on("message", (topic, payload, { qos, retain, properties }) => {
      peer.messages.push({ topic, text: payload.toString(), qos, retain, properties });
      peer.waiting?.();
    });
    peer.client.on("packetsend", (packet) => peer.packetsSent.push({ ...packet }));
    peer.client.on("packetreceive", (packet) => peer.packetsReceived.push({ ...packet }));
    await peer.connected(role);
    return peer;
  }

  async connected(what) {
    this.connack = await inTime(`the connection of ${what}`, (done, fail) => {
      this.client.once("connect", done);
      this.client.once("error", fail);
    });
  }

  get sessionPresent() {
    return this.connack.sessionPresent;
  }

  async subscribe(topic, qos, properties) {
    const [granted] = await this.client.subscribeAsync(topic, { qos, properties });
    return granted.qos;
  }

  /** Returns SUBACK. */
  async subscribeAll(filters) {
    this.packetsReceived.length = 0;
    // MQTT.js takes any refusal for an error.
    await this.client.subscribeAsync(filters).catch(() => {});
    return this.packetsReceived.find(({ cmd }) => cmd === "suback");
  }

  async publish(topic, text, options) {
    await this.client.publishAsync(topic, text, options);
  }

  async receive() {
    if (this.messages.length === 0) {
      await inTime("a message", (done) => {
        this.waiting = done;
      });
      this.waiting = undefined;
    }
    return this.messages.shift();
  }

  async disconnect(options = {}) {
    await this.client.endAsync(false, options);
  }

  /** Closes the socket without a DISCONNECT. */
  async loseConnection() {
    await inTime("the end of the connection", (done) => {
      this.client.once("close", done);
      this.client.stream.destroy();
    });
  }

  async reconnect() {
    const connected = this.connected("who was there before");
    // Without these it would forget what it has not sent.
    const { incomingStore, outgoingStore } = this.client;
    this.client.reconnect({ incomingStore, outgoingStore });
    await connected;
  }
}

/** What `start` hands to its first argument; fails at the deadline. */
async function inTime(what, start) {
  let timer;
  try {
    return await new Promise((done, fail) => {
      timer = setTimeout(() => fail(new Error(`${what} did not come in time`)), PATIENCE_MS);
      start(done, fail);
    });
  } finally {
    clearTimeout(timer);
  }
}

await scenarios[scenario]();
