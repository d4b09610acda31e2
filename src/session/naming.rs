//! Topic names between a client and the broker. Floor 2, part of `Session`.
//!
//! Aliases and the mount point end here: what goes to the router has its whole name and no alias. A message that
//! needs that is written anew, the others go on as they came.

use crate::codec::{
    PACKET_BYTES_MAX, Packet, PropertiesBuf, Property, Publish, PublishView, header_len,
};
use crate::ids::ProtocolVersion;
use crate::session::Link;
use crate::session::aliases::ReceivedAliases;
use crate::session::refusal::{FilterRefusal, PublishRefusal};
use crate::topic::{MountPoint, TopicFilter, Unmountable};

/// The whole name of the topic of a message that has to be written anew for its mount point.
pub(super) enum Mounted {
    /// There is no mount point.
    Not,
    /// With its mount point.
    Topic(String),
    /// There is no such topic.
    Refused(PublishRefusal),
}

impl Mounted {
    /// Of a message whose frame has `frame_len` bytes.
    #[cold]
    pub(super) fn new(mount_point: &MountPoint, topic: &str, frame_len: usize) -> Self {
        match mount_point.whole_topic(topic) {
            Err(why) => Self::Refused(why.into()),
            Ok(whole) if !has_room(&whole, frame_len) => {
                Self::Refused(PublishRefusal::TopicTooLong)
            }
            Ok(whole) => Self::Topic(whole),
        }
    }
}

/// Whether a message of `frame_len` bytes with another topic is still a packet.
pub(super) fn has_room(topic: &str, frame_len: usize) -> bool {
    frame_len + topic.len() <= PACKET_BYTES_MAX as usize
}

/// The topic of `publish` as the router knows it: with its mount point, or the one that its alias stands for, or the
/// one that it has.
pub(super) fn topic_of<'t>(
    mounted: &'t Mounted,
    aliases: &'t ReceivedAliases,
    publish: &Publish<'t>,
    alias: Option<u16>,
) -> &'t str {
    match mounted {
        Mounted::Topic(whole) => whole,
        Mounted::Not | Mounted::Refused(_) => client_topic_of(aliases, publish, alias),
    }
}

/// The topic itself, or the one that its alias stands for.
pub(super) fn client_topic_of<'t>(
    aliases: &'t ReceivedAliases,
    publish: &Publish<'t>,
    alias: Option<u16>,
) -> &'t str {
    match alias.and_then(|alias| aliases.get(alias)) {
        Some(topic) => topic,
        None => publish.topic,
    }
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
