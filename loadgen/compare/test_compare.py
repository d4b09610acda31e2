"""Tests of what can be tested without a broker; `just test` runs them."""

import pathlib
import tempfile
import unittest

from compare import cells, report
from compare.brokers import KNOWN, MEMORY, Broker, Given, Running, durable
from compare.measure import order
from compare.report import Report
from compare.summary import summaries


class Order(unittest.TestCase):
    """Who is measured when."""

    def test_brokers_alternate_within_each_cell_and_another_one_is_first_in_each_round(self):
        brokers = [Broker(name, "", []) for name in KNOWN]
        runs = [(number, cell.name, broker.name) for number, cell, broker in
                order(2, cells.STANDARD[:2], brokers)]
        first, second = list(KNOWN), [*list(KNOWN)[1:], "mailboxqtt"]
        names = [cell.name for cell in cells.STANDARD[:2]]
        expected = [(1, name, broker) for name in names for broker in first]
        expected += [(2, name, broker) for name in names for broker in second]
        self.assertEqual(runs, expected)

    def test_extended_cells_are_for_two_brokers_and_for_those_that_were_given(self):
        brokers = [Broker(name, "", []) for name in KNOWN] + [Given("flashmq", "a:1", 2)]
        measured = [broker.name for _, _, broker in order(1, cells.EXTENDED[:1], brokers)]
        self.assertEqual(measured, ["mailboxqtt", "mosquitto", "flashmq"])

    def test_no_two_cells_have_the_same_name(self):
        names = [cell.name for cell in cells.STANDARD + cells.EXTENDED]
        self.assertEqual(len(names), len(set(names)))
        groups = [cell.group for cell in cells.STANDARD]
        self.assertEqual((groups.count(cells.TABLE), groups.count(cells.DURABLE)), (21, 6))

    def test_durable_cells_are_for_brokers_that_are_set_up_for_them_and_these_for_no_others(self):
        chosen = [Broker("mailboxqtt", "1", ["m"]), Broker("mosquitto", "2", ["q"], "mosquitto.conf")]
        variants = [variant for broker in chosen for variant in durable(broker)]
        self.assertEqual([each.name for each in variants], list(cells.DURABLE_BROKERS))
        self.assertEqual(durable(Broker("rumqttd", "3", ["r"])), [])
        for each in variants:
            self.assertNotEqual(each.place, MEMORY, each)
        first, last = cells.STANDARD[0], cells.STANDARD[-1]
        brokers = [*chosen, *variants, Given("flashmq", "a:1", 2)]
        measured = [(cell.group, broker.name) for _, cell, broker in order(1, [first, last], brokers)]
        expected = [(cells.TABLE, name) for name in ("mailboxqtt", "mosquitto", "flashmq")]
        expected += [(cells.DURABLE, name) for name in cells.DURABLE_BROKERS]
        self.assertEqual(measured, expected)
        self.assertIn("autosave_interval", variants[-1].settings_text())
        for cell in (cell for cell in cells.STANDARD if cell.group == cells.DURABLE):
            self.assertTrue(cell.name.startswith("durable-"), cell)
            self.assertIn("--persistent", cell.options)


class LastWords(unittest.TestCase):
    """Why a broker did what it did."""

    def test_the_last_error_in_the_log_is_found_behind_its_colours(self):
        with tempfile.NamedTemporaryFile("w") as log:
            log.write("a\n\x1b[31mERROR\x1b[0m one\n error: two\n  in three\n\n")
            log.flush()
            self.assertEqual(Running("", 1, pathlib.Path(log.name)).last_error(), "error: two")
        self.assertEqual(Running("", 1).last_words(), "")

    def test_a_log_without_an_error_still_has_a_last_line(self):
        with tempfile.NamedTemporaryFile("w") as log:
            log.write("started\nno such file\n")
            log.flush()
            running = Running("", 1, pathlib.Path(log.name))
            self.assertEqual((running.last_error(), running.last_words()), ("", "no such file"))


class Arguments(unittest.TestCase):
    """The value of `--with`."""

    def test_a_given_broker_has_a_name_an_address_and_a_process(self):
        self.assertEqual(Given.parse("x=::1:1883,7"), Given("x", "::1:1883", 7))
        for wrong in ("x", "x=1883,7", "x=h:1883", "x=h:1883,pid", "=h:1883,7"):
            with self.assertRaises(ValueError, msg=wrong):
                Given.parse(wrong)


class Tables(unittest.TestCase):
    """What is shown of a result."""

    def test_cpu_is_the_median_with_its_ratio_to_ours(self):
        shown = table([("mailboxqtt", [run(0.3), run(0.1), run(0.2)]), ("other", [run(5.0)])])
        self.assertIn("| p2p 10→10, QoS 1 | 0.200 | 5.000 (25.0×) |", shown)
        self.assertIn("Runs of one cell differ by 100 %", shown)

    def test_what_broke_a_promise_is_summed_and_in_bold(self):
        runs = [run(1, lost=1_200), run(2, lost=34, reordered=5)]
        shown = table([("mailboxqtt", [run(1)]), ("other", runs)])
        self.assertIn("1.500 (1.5×), **1,234 lost**, **5 out of order**", shown)

    def test_messages_of_different_topics_may_overtake_each_other(self):
        shown = table([("mailboxqtt", [run(1, reordered=5, scenario="wildcard")])])
        self.assertNotIn("5 out of order", shown)

    def test_a_loss_is_allowed_at_qos_0_and_a_double_below_2(self):
        found = summaries(result([("other", [run(1, lost=7, duplicated=3)])]))
        found = found["p2p 10→10, QoS 1", "other"]
        self.assertEqual(report.marks_of(found, 0), ["7 lost", "3 doubled"])
        self.assertEqual(report.marks_of(found, 1), ["**7 lost**", "3 doubled"])
        self.assertEqual(report.marks_of(found, 2), ["**7 lost**", "**3 doubled**"])

    def test_what_a_broker_cannot_do_is_a_dash_with_the_reason_below(self):
        shown = table([("mailboxqtt", [run(1)]), ("other", [failure("no QoS 2")] * 2)])
        self.assertIn("| 1.000 | – (1) |", shown)
        self.assertIn("1. other: no QoS 2", shown)

    def test_a_reason_that_differs_in_numbers_alone_is_given_once(self):
        cell = cells.STANDARD[1]
        first, second = failure("client a7-1 at port 1 left"), failure("client b9-2 at port 3 left")
        both = result([("other", [first])])
        both["cells"].append({**both["cells"][0], "name": "again"})
        both["runs"].append({"cell": "again", "broker": "other", **second})
        shown = Report(both).full()
        self.assertIn(f"| {cell.name} | – (1) |\n| again | – (1) |", shown)
        self.assertTrue(shown.endswith("1. other: client a7-1 at port 1 left\n"))

    def test_a_broker_that_fails_sometimes_is_shown_with_both(self):
        shown = table([("mailboxqtt", [run(1)]), ("other", [run(3), failure("it crashed")])])
        self.assertIn("3.000 (3.0×), **1 of 2 runs failed** (1)", shown)

    def test_a_run_without_any_delivery_has_no_figure(self):
        shown = table([("mailboxqtt", [run(1)]), ("other", [run(None)])])
        self.assertIn("– (1)", shown)
        self.assertIn("1. other: no message arrived", shown)

    def test_an_interrupted_result_says_so_and_shows_what_it_has(self):
        shown = Report({**result([("mailboxqtt", [run(1)])]), "complete": False}).full()
        self.assertIn("**Interrupted** after 1 runs", shown)
        self.assertIn("| p2p 10→10, QoS 1 | 1.000 |", shown)

    def test_rates_and_latencies_that_the_generator_has_limited_are_marked(self):
        limited = run(1)
        limited["loadgen"]["generator"]["saturated"] = True
        shown = table([("mailboxqtt", [limited]), ("other", [run(1)])])
        self.assertIn("| 1.0* | 1.0 |", shown)
        self.assertIn("| 1/2* | 1/2 |", shown)

    def test_durable_table_is_its_own_and_its_factors_are_those_to_the_broker_that_syncs(self):
        cell = cells.STANDARD[-1]
        runs = [(cells.ALWAYS, [run(2.0)]), (cells.SNAPSHOTS, [run(5.0)])]
        shown = table(runs, cell)
        self.assertIn(f"| {cell.name} | 2.000 | 5.000 (2.5×) |", shown)
        self.assertIn("## Nothing acknowledged may be lost", shown)
        self.assertNotIn("## CPU time", shown)
        self.assertIn(report.DURABLE, Report(result(runs, cell)).short())
        self.assertNotIn("Nothing acknowledged", table([("mailboxqtt", [run(1)])]))

    def test_connecting_has_a_row_for_speed_and_one_for_memory(self):
        connect = cells.EXTENDED[-1]
        shown = table([("mailboxqtt", [run(None)]), ("mosquitto", [run(None)])], connect)
        self.assertIn("| connect: 10,000 clients, connects/s | 20,000 | 20,000 |", shown)
        self.assertIn("per idle connection | 2.5 | 2.5 |", shown)


class Pages(unittest.TestCase):
    """Generated text in pages that people write."""

    def test_only_what_is_between_the_markers_is_replaced(self):
        page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
        once = report.replace(page, "new\n")
        self.assertEqual(once, f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n")
        self.assertEqual(report.replace(once, "new\n"), once)

    def test_a_page_without_markers_is_refused(self):
        with self.assertRaises(ValueError):
            report.replace(f"{report.BEGIN}\nno end", "new")


def table(runs, cell=cells.STANDARD[1]):
    """The whole report of one cell."""
    return Report(result(runs, cell)).full()


def result(runs, cell=cells.STANDARD[1]):
    """What `result.json` holds after these runs, a list per broker."""
    return {
        "date": "2026-11-22T00:00:00+00:00", "command": "just compare", "rounds": 3, "seconds": 3.0,
        "machine": {"cpu": "x", "cores": 2, "memory_gib": 1, "kernel": "k", "system": "s", "busy_percent": 0},
        "whole": True, "complete": True, "left_out": [],
        "brokers": [{"name": name, "version": "", "settings": ""} for name, _ in runs],
        "cells": [{**vars(cell), "name": cell.name}],
        "runs": [{"cell": cell.name, "broker": name, **each} for name, all in runs for each in all],
    }


def run(cpu_us, lost=0, duplicated=0, reordered=0, scenario="p2p"):
    """A run that loadgen has finished; without `cpu_us` nothing arrived."""
    latency = {"p50": 1.0, "p99": 2.0} if cpu_us else None
    return {"reason": "", "loadgen": {
        "scenario": scenario, "received_per_s": 1_000.0, "latency_us": latency, "expected_total": 10_000, "lost": lost,
        "duplicated": duplicated, "reordered": reordered, "unacknowledged": 0,
        "connect": {"per_s": 20_000.0}, "generator": {"saturated": False},
        "broker": {"cpu_us_per_message": cpu_us, "kib_per_connection": 2.5},
    }}


def failure(reason):
    """A run that could not be done."""
    return {"reason": reason, "loadgen": None}


if __name__ == "__main__":
    unittest.main()
