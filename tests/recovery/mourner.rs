//! A client that says nothing but its will, which the broker has to publish after each kill.

use std::sync::Arc;
use std::time::Duration;

use mailboxqtt::ids::ProtocolVersion;

use crate::history::Sent;
use crate::link::{Event, Link, Session};
use crate::message::Key;
use crate::stage::{Act, Stage, Visit};
use crate::wire::Hello;

/// QoS of all wills. Whether the broker published one when it was killed it may not know, so not more.
const QOS: u8 = 1;

/// See the module comment.
pub(crate) struct Mourner {
    pub(crate) index: u8,
    pub(crate) name: &'static str,
    pub(crate) version: ProtocolVersion,
    pub(crate) stage: Arc<Stage>,
    pub(crate) is_established: bool,
    pub(crate) sent: Vec<Sent>,
}

impl Mourner {
    /// Returns all wills that the broker was given, but not the last, which is withdrawn.
    pub(crate) fn live(mut self) -> Vec<Sent> {
        self.stage.wait_until_running();
        let mut life = 0;
        while let Some(visit) = self.stage.visit_after(life) {
            life = visit.life;
            self.attend(&visit);
        }
        self.sent
    }

    /// One connection, with a will of its own.
    fn attend(&mut self, visit: &Visit) {
        let key = Key { publisher: self.index, number: self.sent.len() as u32 };
        let topic = format!("will/{}", self.name);
        let payload = key.payload(&topic);
        let hello = Hello::persistent(self.version, self.name).will(&topic, &payload, QOS, false);
        self.sent.push(Sent {
            topic: topic.as_str().into(),
            qos: QOS,
            is_clear: false,
            first: self.stage.now(visit.life),
            again: Vec::new(),
            accepted: None,
            completed: None,
        });
        let session = match self.is_established {
            true => Session::Established,
            false => Session::Any,
        };
        let Some((mut link, _)) = Link::open(&self.stage, visit, &hello, session) else { return };
        self.is_established = true;
        loop {
            match link.next(Duration::from_millis(10)) {
                Event::Quiet if self.stage.act() > Act::Running => return link.disconnect(),
                Event::Quiet => (),
                Event::Gone => {
                    self.stage.lost(visit, self.name, "its connection has ended");
                    break;
                }
                Event::Packet(frame) => {
                    let packet = link.decode(&frame);
                    self.stage.complain(format!("{}: {packet:?} came", self.name));
                }
            }
        }
        let at = self.stage.now(visit.life);
        self.sent.iter_mut().next_back().into_iter().for_each(|sent| sent.accepted = Some(at));
    }
}
