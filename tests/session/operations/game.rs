//! Makes things happen, and compares what comes out with what the oracle says.

use std::time::Duration;

use mailboxqtt::codec::{Packet, ReasonCode, decode};
use mailboxqtt::ids::ProtocolVersion::V5;
use mailboxqtt::session::CloseReason;

use super::LIMITS;
use super::answers::{Answer, Answers, Authentication, Close, Routed, ids_in};
use super::catalogue::{Catalogue, has_takers};
use super::choices::Choices;
use super::client::{Client, terms};
use super::pair::{Pair, Taken, Terms};
use super::router::{Receipt, Router};
use super::secret;
use super::sending::Sending;

/// Of the clients that have one, which never see it.
const MOUNT_POINT: &str = "tenant/";
/// Enough for everything to come to rest.
const ROUNDS_MAX: usize = 20_000;

/// See the module comment.
pub(super) struct Game<'a> {
    choices: Choices<'a>,
    pair: Pair,
    terms: Terms,
    link_is_up: bool,
    client: Client,
    router: Router,
    catalogue: Catalogue,
    answers: Answers,
    sending: Sending,
    /// Everything that was routed.
    routed: Vec<Routed>,
    /// Time since the session was given a packet.
    silence: Duration,
    /// The client never comes back in the end.
    ends: bool,
}

impl<'a> Game<'a> {
    /// Nothing has happened but the first CONNECT.
    pub(super) fn new(mut choices: Choices<'a>) -> Self {
        let terms = terms(&mut choices);
        let first_id = choices.one_of(&[1, 1, 59_990]);
        let ends = choices.one_in(8);
        let mount_point = if choices.one_in(4) { MOUNT_POINT } else { "" };
        let pair = match mount_point {
            "" => Pair::with_limits(terms, LIMITS),
            _ => Pair::behind(mount_point, terms, LIMITS),
        };
        let client = Client::new(terms, topics(&pair, mount_point), first_id);
        let sending = Sending::new(terms, pair.now);
        Self {
            choices,
            pair,
            terms,
            link_is_up: true,
            client,
            router: Router::default(),
            catalogue: Catalogue::new(mount_point),
            answers: Answers::new(terms, mount_point),
            sending,
            routed: Vec::new(),
            silence: Duration::ZERO,
            ends,
        }
    }

    /// To the last byte, and then to rest.
    pub(super) fn play(mut self) {
        while !self.choices.is_exhausted() {
            self.step();
            assert!(self.pair.released_messages <= self.pair.charged_messages);
            assert!(self.pair.released_bytes <= self.pair.charged_bytes);
        }
        self.finish();
    }

    fn step(&mut self) {
        let choices = &mut self.choices;
        match choices.below(32) {
            0..5 => self.deliver(false),
            5..9 if self.link_is_up => self.client.publish(choices),
            9..11 if self.link_is_up => self.client.ask(choices),
            11..16 if self.link_is_up => self.client.answer(choices),
            16 if self.link_is_up && choices.one_in(2) => self.client.misbehave(choices),
            17 if choices.one_in(4) => self.client.corrupt(choices),
            18 if self.link_is_up && choices.one_in(8) => self.client.babble(choices),
            19..22 => self.give_receipt(),
            22 => self.do_part(),
            23 => self.send_chunk(),
            24 if choices.flag() => self.drop_expired(),
            24 => self.pass(),
            25..27 => self.client_reads(),
            27 if self.link_is_up => self.lose_link(),
            28 if !self.link_is_up => self.give_away(false),
            _ if !self.link_is_up => self.resume(),
            _ => self.session_reads(),
        }
        if self.link_is_up && self.choices.flag() {
            self.fill();
        }
    }

    fn deliver(&mut self, retain: bool) {
        let first = self.catalogue.len();
        let delivery = self.catalogue.delivery(retain, self.pair.now, &mut self.choices);
        for number in first..self.catalogue.len() {
            self.sending.delivered(number, self.catalogue.item(number).qos);
        }
        self.pair.deliver(delivery);
    }

    /// A part of the uplink arrives, mostly all of it.
    fn session_reads(&mut self) {
        let len = self.client.uplink.len();
        let count = if self.choices.flag() { len } else { self.choices.below(len + 1) };
        self.session_reads_bytes(count);
    }

    fn session_reads_bytes(&mut self, count: usize) {
        if !self.link_is_up || count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.client.uplink.drain(..count).collect();
        for taken in self.pair.receive(&bytes) {
            match taken {
                Taken::Packet { frame, asked } => {
                    self.silence = Duration::ZERO;
                    match decode(&frame, self.terms.version) {
                        Ok(packet) => self.answers.take(&packet, asked, &mut self.sending),
                        Err(error) => self.answers.malformed(&error),
                    }
                }
                Taken::Turn { number, batches } => {
                    let shard_of = |topic: &str| self.pair.shard_of(topic);
                    let routed = self.answers.end_turn(number, &batches, shard_of);
                    self.routed.extend(routed);
                    for (_, batch) in batches.iter().filter(|_| number.is_some()) {
                        let turn = number.unwrap_or_default();
                        self.router.take_batch(turn, ids_in(batch), &mut self.choices);
                    }
                }
            }
        }
        if let Some(CloseReason::Malformed(error)) = &self.pair.out.close {
            self.answers.malformed(error);
        }
        self.take_requests();
        self.compare_answers();
    }

    fn take_requests(&mut self) {
        for request in self.pair.requests() {
            self.router.take(request, &mut self.choices);
        }
    }

    /// What came out is what had to, in this order.
    fn compare_answers(&mut self) {
        let bytes = self.pair.take_bytes();
        let mut heard = Vec::new();
        let is_bare = self.terms.problem_information == Some(false);
        self.pair.each_packet(&bytes, |packet| {
            heard.push(Answer::of(&packet).unwrap_or_else(|| panic!("{packet:?} out of place")));
            let is_explained = format!("{packet:?}").contains("ReasonString");
            assert!(!is_bare || !is_explained, "{packet:?} against the client's wish");
        });
        assert_eq!(heard, self.answers.take_said());
        self.client.downlink.extend(bytes);
        self.compare_close();
    }

    fn compare_close(&mut self) {
        let close = self.pair.close_reason();
        let code = close.as_ref().map(|reason| match reason.reason_code() {
            None => Close::Silently,
            Some(code) => Close::With(code.as_u8()),
        });
        assert_eq!(code, self.answers.close(), "{close:?}");
        if let Some(reason) = close {
            self.end_link(&reason);
        }
    }

    fn give_receipt(&mut self) {
        // While the client is away nobody reads the mailbox.
        if !self.link_is_up {
            return;
        }
        let Some(receipt) = self.router.receipt(&mut self.choices) else { return };
        let Receipt { turn, unmatched } = receipt;
        self.answers.accept(turn, &unmatched);
        self.pair.accept_unmatched(&super::pair::Receipt { turn }, &unmatched);
        self.compare_answers();
    }

    fn do_part(&mut self) {
        if !self.link_is_up {
            return;
        }
        let Some(part) = self.router.part(&mut self.choices) else { return };
        let (session, out) = (&mut self.pair.session, &mut self.pair.out);
        session.handle_part_done(part.token, part.parts_due, part.replay, out);
        if part.is_last {
            self.answers.request_done(part.token);
        }
        self.compare_answers();
    }

    /// Retained messages that the session asked for, and perhaps the rest later.
    fn send_chunk(&mut self) {
        if !self.link_is_up {
            return;
        }
        let Some(replay) = self.router.replay() else { return };
        assert!(self.answers.is_answered(replay.token), "retained messages before their SUBACK");
        for _ in 0..self.choices.below(3) {
            self.deliver(true);
        }
        let rest = self.choices.one_in(3).then_some(replay);
        self.pair.session.handle_chunk(rest);
    }

    /// The clock jumps.
    fn pass(&mut self) {
        let seconds = self.choices.one_of(&[0, 1, 1, 2, 5, 10, 100]);
        let time = Duration::from_secs(seconds) + Duration::from_millis(250);
        self.pair.pass(time);
        self.sending.pass(self.pair.now);
        self.silence += time;
        if !self.link_is_up {
            return;
        }
        // One and a half periods [MQTT-3.1.2-22].
        let keep_alive = Duration::from_secs(self.terms.keep_alive_s.into());
        if !keep_alive.is_zero() && self.silence >= keep_alive * 3 / 2 {
            self.answers.close_with(ReasonCode::KeepAliveTimeout);
        }
        if self.pair.session.poll_timeout().is_some_and(|deadline| deadline <= self.pair.now) {
            self.pair.session.handle_timeout(self.pair.now, &mut self.pair.out);
        }
        self.compare_answers();
    }

    /// Room is made for other messages.
    fn drop_expired(&mut self) {
        let (session, out) = (&mut self.pair.session, &mut self.pair.out);
        let may_expire = session.drop_expired(self.pair.now, out);
        let will_expire = self.sending.drop_expired(&self.catalogue);
        assert!(may_expire || !will_expire, "more will expire");
        assert_eq!(self.pair.take_bytes(), [0_u8; 0], "nothing is said about it");
    }

    fn client_reads(&mut self) {
        let len = self.client.downlink.len();
        let count = if self.choices.flag() { len } else { self.choices.below(len + 1) };
        self.client.read(count, &self.catalogue);
    }

    /// The session writes all that it can.
    fn fill(&mut self) {
        loop {
            let (bytes, more) = self.pair.fill();
            let (sending, catalogue) = (&mut self.sending, &self.catalogue);
            self.pair.each_packet(&bytes, |packet| sending.written(&packet, catalogue));
            self.client.downlink.extend(bytes);
            if !more {
                break;
            }
        }
        self.sending.filled(&self.catalogue);
        assert_eq!(self.pair.session.inflight(), self.sending.inflight());
        self.take_requests();
        self.compare_close();
    }

    fn lose_link(&mut self) {
        let reason = match self.choices.below(3) {
            0 => CloseReason::Lost("gone".to_owned()),
            1 => CloseReason::TakenOver,
            _ => CloseReason::ShuttingDown,
        };
        self.end_link(&reason);
    }

    /// The last packet is DISCONNECT, and nothing comes after it. The client sees a part of all that.
    fn end_link(&mut self, reason: &CloseReason) {
        self.pair.session.say_goodbye(reason, &mut self.pair.out);
        let bytes = self.pair.take_bytes();
        let mut last = Vec::new();
        self.pair.each_packet(&bytes, |packet| match packet {
            Packet::Disconnect(disconnect) => last.push(disconnect.reason),
            other => panic!("{other:?} after the end"),
        });
        let code = reason.reason_code().filter(|_| self.terms.version == V5);
        let fits = self.terms.packet_bytes_max.is_none_or(|max| max >= 3);
        assert_eq!(last, Vec::from_iter(code.filter(|_| fits)));
        self.client.downlink.extend(bytes);
        self.client_reads();
        self.client.disconnected(&mut self.choices);
        self.pair.session.detach(reason);
        self.pair.lose_link();
        self.take_requests();
        self.link_is_up = false;
    }

    /// The client is away: other members of its shared subscriptions get what waits.
    fn give_away(&mut self, has_ended: bool) {
        let (session, out) = (&mut self.pair.session, &mut self.pair.out);
        let undelivered = session.take_shared(has_ended, has_takers, out);
        self.sending.give_away(&undelivered, has_ended, &self.catalogue);
        assert_eq!(self.pair.take_bytes(), [0_u8; 0], "nobody is there to read");
    }

    fn resume(&mut self) {
        let terms = terms(&mut self.choices);
        self.resume_with(terms);
    }

    fn resume_with(&mut self, terms: Terms) {
        self.terms = terms;
        self.silence = Duration::ZERO;
        self.link_is_up = true;
        let is_authenticated = terms.version == V5 && self.choices.flag();
        self.pair.authenticated = is_authenticated.then(secret::authenticated);
        let authentication =
            if is_authenticated { Authentication::Complete } else { Authentication::None };
        self.answers.attach(terms, authentication);
        self.sending.attach(terms);
        self.pair.resume(terms, LIMITS);
        self.client.connected(terms);
    }

    /// Brings everything to rest and looks at the books.
    fn finish(&mut self) {
        if self.link_is_up {
            self.end_link(&CloseReason::Lost("gone".to_owned()));
        }
        if self.ends {
            return self.give_away(true);
        }
        // What was changed on the way may have taken room under the Receive Maximum for good.
        self.resume_with(if self.client.is_corrupted { Terms::V311 } else { Terms::V5 });
        for _ in 0..ROUNDS_MAX {
            self.session_reads_bytes(self.client.uplink.len());
            assert!(self.link_is_up, "closed on a client that breaks no rule");
            self.give_receipt();
            self.do_part();
            self.send_chunk();
            self.fill();
            self.client.read(self.client.downlink.len(), &self.catalogue);
            self.client.answer(&mut self.choices);
            if self.client.is_quiet() && self.router.is_quiet() {
                break;
            }
        }
        assert!(self.client.is_quiet() && self.router.is_quiet(), "it does not come to rest");
        assert_eq!(self.pair.session.inflight(), 0);
        assert_eq!(self.pair.released_messages, self.pair.charged_messages);
        assert_eq!(self.pair.released_bytes, self.pair.charged_bytes);
        // Nothing is dropped without being counted.
        let dropped = self.pair.too_large + self.pair.expired;
        assert_eq!(dropped, self.sending.left_out.len() as u64);
        assert_eq!(self.pair.not_routed, self.answers.not_routed);
        if !self.client.is_corrupted {
            self.client.check_got(&self.catalogue, &self.sending);
            self.client.check_published(&self.routed, self.catalogue.mount_point);
        }
    }
}

/// Two topics of one shard and one of another. All are of one length, for the hash of a topic is another one
/// in each run, and the game must not be.
fn topics(pair: &Pair, mount_point: &str) -> [String; 3] {
    let names = || (100..1000).map(|number| format!("topic/{number}"));
    let shard_of = |name: &String| pair.shard_of(&format!("{mount_point}{name}"));
    let mut first = names().filter(|name| shard_of(name) == 0);
    let mut second = names().filter(|name| shard_of(name) == 1);
    let mut next = |is_first| if is_first { first.next() } else { second.next() };
    [true, true, false].map(|is_first| next(is_first).expect("each shard has topics"))
}
