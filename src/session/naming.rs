//! Topic names between a client and the broker. Floor 2, part of `Session`.
//!
//! Aliases and the mount point end here: what goes to the router has its whole name and no alias. A message that
//! needs that is written anew, the others go on as they came.

use std::borrow::Cow;

use crate::codec::{
    PACKET_BYTES_MAX, Packet, PropertiesBuf, Property, Publish, PublishView, header_len,
};
use crate::ids::ProtocolVersion;
use crate::message::Incoming as Arrival;
use crate::session::refusal::{FilterRefusal, PublishRefusal};
use crate::session::{Link, Output, Session};
use crate::topic::{MountPoint, TopicFilter, Unmountable};

impl Session {
    /// A PUBLISH whose topic has another name here: it goes on with that.
    #[inline(never)]
    pub(super) fn handle_renamed(
        &mut self,
        publish: &Publish<'_>,
        frame_len: usize,
        alias: Option<u16>,
        expires: bool,
        format: Option<PublishRefusal>,
        out: &mut Output,
    ) {
        let aliases = std::mem::take(&mut self.aliases);
        let said = alias.and_then(|alias| aliases.get(alias)).unwrap_or(publish.topic);
        let whole = whole_topic(said, self.link.mount_point.as_ref(), frame_len);
        let (topic, refusal) = match &whole {
            Ok(whole) => (&**whole, self.find_refusal(whole).or(format)),
            Err(refusal) => (said, Some(*refusal)),
        };
        if self.admit(publish, topic, refusal, out) {
            let (qos, retain) = (publish.delivery.qos(), publish.retain);
            let message = Arrival { topic, qos, retain, expires };
            let version = self.link.version;
            out.routes
                .add_rewritten(message, |frames| write_whole(publish, topic, version, frames));
        }
        self.aliases = aliases;
    }
}

/// The name of `topic` here, for a message whose frame has `frame_len` bytes. With it the message has to be a packet still.
pub(super) fn whole_topic<'t>(
    topic: &'t str,
    mount_point: Option<&MountPoint>,
    frame_len: usize,
) -> Result<Cow<'t, str>, PublishRefusal> {
    let whole = match mount_point {
        None => Cow::Borrowed(topic),
        Some(mount_point) => Cow::Owned(mount_point.whole_topic(topic)?),
    };
    let has_room = frame_len + whole.len() <= PACKET_BYTES_MAX as usize;
    if has_room { Ok(whole) } else { Err(PublishRefusal::TopicTooLong) }
}

/// Writes `publish` with its whole topic and without its alias, which mean something on this connection
/// only [MQTT-3.3.2-7]. Returns where the topic starts.
pub(super) fn write_whole(
    publish: &Publish<'_>,
    topic: &str,
    version: ProtocolVersion,
    frames: &mut Vec<u8>,
) -> usize {
    let mut properties = PropertiesBuf::new();
    for property in publish.properties.iter() {
        if !matches!(property, Property::TopicAlias(_)) {
            properties.push(property);
        }
    }
    let publish = Publish { topic, properties: properties.as_properties(), ..*publish };
    let start = frames.len();
    Packet::Publish(publish).encode(version, frames);
    frames.get(start..).and_then(header_len).unwrap_or(0) + 2
}

/// The filter of a client as the router knows it.
pub(super) fn whole_filter(filter: TopicFilter, link: &Link) -> Result<TopicFilter, FilterRefusal> {
    match &link.mount_point {
        None => Ok(filter),
        Some(mount_point) => {
            Ok(mount_point.whole_filter(&filter).ok_or(FilterRefusal::NoSuchTopics)??)
        }
    }
}

/// The message as its client sees it; `None` where its topic is not below the mount point of the client.
#[cold]
pub(super) fn unmounted<'a>(
    view: &PublishView<'a>,
    mount_point: &MountPoint,
) -> Option<PublishView<'a>> {
    Some(PublishView { topic: mount_point.strip(view.topic)?, ..*view })
}

impl From<Unmountable> for PublishRefusal {
    fn from(why: Unmountable) -> Self {
        match why {
            Unmountable::Dollar => Self::NoSuchTopic,
            Unmountable::TooLong => Self::TopicTooLong,
        }
    }
}
