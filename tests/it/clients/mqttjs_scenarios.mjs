// Scenarios with MQTT.js, one per run. `tests/it/mqttjs.rs` runs this file.
//
//     node mqttjs_scenarios.mjs FOLDER HOST PORT 4|5 SCENARIO NAME
//
// FOLDER is where MQTT.js is installed. A scenario is a function of `scenarios`; it ends with an
// assertion error or in silence. NAME is the prefix of topics and client identifiers, so that runs
// do not meet on a shared broker. Every wait has a deadline, none is a sleep.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const PATIENCE_MS = 20_000;
const WINDOW = 20;
const [folder, host, port, version, scenario, name] = process.argv.slice(2);
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
    doomed.loseConnection();
    const message = await watcher.receive();
    assert.deepEqual([message.text, message.qos, message.retain], ["gone", 1, false]);
    if (v5) assert.deepEqual({ ...message.properties.userProperties }, { why: "lost" });
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
};

function will(topic, payload) {
  const properties = v5 ? { userProperties: { why: "lost" } } : undefined;
  return { topic, payload: Buffer.from(payload), qos: 1, retain: false, properties };
}

/** A connected client; messages that nobody has asked for yet wait in a list. */
class Peer {
  static async connect(role, { clean = true, will } = {}) {
    const peer = new Peer();
    peer.messages = [];
    peer.waiting = undefined;
    peer.client = mqtt.connect({
      host,
      port: Number(port),
      protocol: "mqtt",
      protocolVersion: Number(version),
      clientId: `${name}-${role}`,
      clean,
      will,
      reconnectPeriod: 0,
      properties: v5 ? { sessionExpiryInterval: clean ? 0 : 600 } : undefined,
    });
    // Set before the connection stands: a resumed session gets its messages at once.
    peer.client.on("message", (topic, payload, { qos, retain, properties }) => {
      peer.messages.push({ topic, text: payload.toString(), qos, retain, properties });
      peer.waiting?.();
    });
    peer.sessionPresent = await inTime(`the connection of ${role}`, (done, fail) => {
      peer.client.once("connect", (connack) => done(connack.sessionPresent));
      peer.client.once("error", fail);
    });
    return peer;
  }

  async subscribe(topic, qos) {
    const [granted] = await this.client.subscribeAsync(topic, { qos });
    return granted.qos;
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

  async disconnect() {
    await this.client.endAsync();
  }

  /** Closes the socket without a DISCONNECT. */
  loseConnection() {
    this.client.stream.destroy();
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
