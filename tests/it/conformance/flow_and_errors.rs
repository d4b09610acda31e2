//! Flow control, request and response, authentication, errors, WebSocket (4.9 to 4.13 and 6; 4.8 of 3.1.1).
