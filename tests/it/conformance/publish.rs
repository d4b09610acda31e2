//! PUBLISH (3.3): flags, retained messages, properties, aliases, who gets a copy.
