//! Session state, the flows of each QoS, delivery again, order (4.1 to 4.6).
