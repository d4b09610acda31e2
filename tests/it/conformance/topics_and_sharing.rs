//! Topic names, topic filters, shared subscriptions (4.7, and 4.8 of MQTT 5.0).
