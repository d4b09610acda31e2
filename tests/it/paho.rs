//! Behaviour as Eclipse Paho for Python sees it: each test runs one scenario of
//! `clients/paho_scenarios.py`, where the steps and the assertions are, in one protocol version.

use std::process::{Command, Stdio};

use crate::broker::Broker;
use crate::process::{Process, script, tools, unique};

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v311() {
    run("311", "round_trip_at_each_qos");
}

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v5() {
    run("5", "round_trip_at_each_qos");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v311() {
    run("311", "resumed_session_gets_its_queued_messages");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v5() {
    run("5", "resumed_session_gets_its_queued_messages");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v311() {
    run("311", "will_follows_a_lost_connection_and_not_a_clean_one");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v5() {
    run("5", "will_follows_a_lost_connection_and_not_a_clean_one");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v311() {
    run("311", "retained_message_is_kept_replaced_and_cleared");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v5() {
    run("5", "retained_message_is_kept_replaced_and_cleared");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v311() {
    run("311", "thousand_messages_at_qos_2_arrive_exactly_once");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v5() {
    run("5", "thousand_messages_at_qos_2_arrive_exactly_once");
}

#[test]
fn properties_are_forwarded_and_user_properties_keep_their_order() {
    run("5", "properties_are_forwarded_and_user_properties_keep_their_order");
}

#[test]
fn suback_and_unsuback_answer_each_filter_in_order() {
    run("5", "suback_and_unsuback_answer_each_filter_in_order");
}

#[test]
fn puback_says_what_became_of_the_message() {
    run("5", "puback_says_what_became_of_the_message");
}

#[test]
fn one_copy_carries_the_identifiers_of_all_subscriptions_that_match() {
    run("5", "one_copy_carries_the_identifiers_of_all_subscriptions_that_match");
}

#[test]
fn subscription_options_are_applied() {
    run("5", "subscription_options_are_applied");
}

#[test]
fn no_more_messages_are_on_their_way_than_the_client_takes() {
    run("5", "no_more_messages_are_on_their_way_than_the_client_takes");
}

#[test]
fn client_learns_what_the_broker_takes_and_gets_a_name() {
    run("5", "client_learns_what_the_broker_takes_and_gets_a_name");
}

#[test]
fn session_goes_on_as_it_was_until_its_expiry_and_not_after() {
    run("5", "session_goes_on_as_it_was_until_its_expiry_and_not_after");
}

#[test]
fn disconnect_may_end_the_session() {
    run("5", "disconnect_may_end_the_session");
}

#[test]
fn will_waits_for_its_delay_unless_its_client_is_back() {
    run("5", "will_waits_for_its_delay_unless_its_client_is_back");
}

#[test]
fn group_shares_messages_and_those_of_a_member_that_is_lost_go_to_the_others() {
    run("5", "group_shares_messages_and_those_of_a_member_that_is_lost_go_to_the_others");
}

#[test]
fn topic_aliases_stand_for_topics_in_both_directions() {
    run("5", "topic_aliases_stand_for_topics_in_both_directions");
}

#[test]
fn client_is_told_that_its_session_was_taken_over() {
    run("5", "client_is_told_that_its_session_was_taken_over");
}

fn run(version: &str, scenario: &str) {
    let broker = Broker::start();
    let addr = broker.addr();
    let mut command = Command::new(tools("venv/bin/python"));
    command.arg(script("paho_scenarios.py"));
    command.args([addr.ip().to_string(), addr.port().to_string()]);
    command.args([version, scenario, &unique("paho")]);
    Process::spawn(command.stdin(Stdio::null())).succeed();
    broker.stop();
}
