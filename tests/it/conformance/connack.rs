//! CONNACK (3.2): when it comes, and what it says.
