//! Behaviour as the Rust client `rumqttc` sees it, in MQTT 3.1.1 and 5.0; what only MQTT 5 has is in
//! [`v5_only`].
//!
//! The library has two modules with the same names but different types, so the tests are written
//! once in a macro and compiled against each. A `Peer` runs the event loop of one client on a
//! thread and hands out what happened through a channel, on which tests wait with a deadline.

mod v5_only;

macro_rules! behaviour {
    ($version:ident with $($import:item)*) => {
        mod $version {
            use std::sync::mpsc::{self, Receiver};
            use std::thread;

            use ::rumqttc::Outgoing;
            $($import)*

            use crate::broker::Broker;
            use crate::process::{PATIENCE, unique};

            const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

            #[test]
            fn message_at_each_qos_comes_back_to_its_own_publisher() {
                let broker = Broker::start();
                let peer = Peer::connect(&broker);
                for qos in QOS {
                    let topic = unique("echo");
                    peer.subscribe(&topic, qos);
                    peer.publish(&topic, qos, "hello");
                    assert_eq!(peer.received(), (qos, "hello".to_owned()));
                }
                peer.disconnect();
                broker.stop();
            }

            #[test]
            fn thousand_messages_at_qos_2_arrive_exactly_once_and_in_order() {
                let broker = Broker::start();
                let topic = unique("once");
                let subscriber = Peer::connect(&broker);
                subscriber.subscribe(&topic, QoS::ExactlyOnce);

                let publisher = Peer::connect(&broker);
                for n in 0..1_000 {
                    publisher.publish(&topic, QoS::ExactlyOnce, &n.to_string());
                }
                publisher.publish(&topic, QoS::ExactlyOnce, "end");

                for n in 0..1_000 {
                    assert_eq!(subscriber.received(), (QoS::ExactlyOnce, n.to_string()));
                }
                assert_eq!(subscriber.received(), (QoS::ExactlyOnce, "end".to_owned()));
                publisher.disconnect();
                subscriber.disconnect();
                broker.stop();
            }

            enum Happening {
                Subscribed,
                Received(QoS, String),
                Disconnected,
                Failed(String),
            }

            struct Peer {
                client: Client,
                happenings: Receiver<Happening>,
            }

            impl Peer {
                fn connect(broker: &Broker) -> Self {
                    let addr = broker.addr();
                    let options =
                        MqttOptions::new(unique("rumqttc"), addr.ip().to_string(), addr.port());
                    let (client, mut connection) = Client::new(options, 16);
                    let (sender, happenings) = mpsc::channel();
                    thread::spawn(move || {
                        for event in connection.iter() {
                            let happening = match event {
                                Ok(Event::Incoming(Incoming::SubAck(_))) => Happening::Subscribed,
                                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                                    let text = String::from_utf8_lossy(&publish.payload);
                                    Happening::Received(publish.qos, text.into_owned())
                                }
                                Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                                    Happening::Disconnected
                                }
                                Ok(_) => continue,
                                Err(error) => Happening::Failed(error.to_string()),
                            };
                            let last = matches!(
                                happening,
                                Happening::Disconnected | Happening::Failed(_)
                            );
                            if sender.send(happening).is_err() || last {
                                break;
                            }
                        }
                    });
                    Self { client, happenings }
                }

                fn subscribe(&self, topic: &str, qos: QoS) {
                    self.client.subscribe(topic, qos).unwrap();
                    match self.next() {
                        Happening::Subscribed => {}
                        _ => panic!("a message came before the SUBACK"),
                    }
                }

                fn publish(&self, topic: &str, qos: QoS, text: &str) {
                    if self.client.publish(topic, qos, false, text.to_owned()).is_err() {
                        // The event loop has ended; what it said last is the reason.
                        loop {
                            self.next();
                        }
                    }
                }

                fn received(&self) -> (QoS, String) {
                    match self.next() {
                        Happening::Received(qos, text) => (qos, text),
                        _ => panic!("something else came in place of a message"),
                    }
                }

                fn disconnect(self) {
                    self.client.disconnect().unwrap();
                    match self.next() {
                        Happening::Disconnected => {}
                        _ => panic!("a message came after the last one"),
                    }
                }

                fn next(&self) -> Happening {
                    match self.happenings.recv_timeout(PATIENCE).expect("nothing came in time") {
                        Happening::Failed(error) => panic!("the connection failed: {error}"),
                        happening => happening,
                    }
                }
            }
        }
    };
}

behaviour! {
    v311 with
    use ::rumqttc::{Client, Event, Incoming, MqttOptions, QoS};
}

behaviour! {
    v5 with
    use ::rumqttc::v5::mqttbytes::QoS;
    use ::rumqttc::v5::{Client, Event, Incoming, MqttOptions};
}
