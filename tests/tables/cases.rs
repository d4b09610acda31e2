//! Histories that are worth a name.

use std::fs;

use mailboxqtt::ids::{LogPosition, SessionId};
use mailboxqtt::record::{Record, RecordError, Span};
use mailboxqtt::store::{FoldError, Tables};
use tempfile::TempDir;

use crate::{History, Step, To, id_of_raw};

const ME: SessionId = SessionId(1);

#[test]
fn what_was_sent_comes_in_the_order_of_sending_and_what_waits_in_the_order_of_arrival() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    let positions = [four(&mut history), four(&mut history), four(&mut history)];
    let send = |history: &mut History, record: usize, first, count, id| {
        let span = Span { at: positions[record], first, count };
        let first_id = id_of_raw(id);
        history.write(&Record::Sent { session: ME, span, first_id });
    };
    send(&mut history, 1, 1, 2, 65_535);
    send(&mut history, 0, 0, 3, 2);
    history.tables.flush(history.end).unwrap();
    send(&mut history, 2, 3, 1, 5);
    history.write(&Record::Received { session: ME, id: id_of_raw(4) });
    history.write(&Record::Received { session: ME, id: id_of_raw(2) });
    history.check_recovered();

    let recovered = history.tables.recovered(history.end).unwrap();
    let me = &recovered.sessions[0];
    let record = |at| positions.iter().position(|it| *it == at).unwrap();
    let sent = me.sent.iter().map(|it| {
        let place = it.run.place;
        (record(place.at), place.first, place.count, it.first_id.get())
    });
    assert_eq!(sent.collect::<Vec<_>>(), [(1, 1, 2, 65_535), (0, 1, 1, 3), (2, 3, 1, 5)]);
    let waiting = me.waiting.iter().map(|it| (record(it.place.at), it.place.first, it.place.count));
    assert_eq!(waiting.collect::<Vec<_>>(), [(0, 3, 1), (1, 0, 1), (1, 3, 1), (2, 0, 3)]);
    assert_eq!(me.awaits_pubcomp, [id_of_raw(4), id_of_raw(2)], "in the order of the PUBRECs");
}

#[test]
fn segment_is_free_when_its_last_message_is_done_and_that_is_on_disk() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    let at = four(&mut history);
    let (base, end) = (history.segments[0], history.end);
    history.step(Step::Segment { gap: 3 });
    history.tables.flush(history.end).unwrap();
    for first in [2, 0, 3] {
        let span = Span { at, first, count: 1 };
        history.write(&Record::Done { session: ME, span });
    }
    assert_eq!((history.tables.live(base), history.tables.may_go(base, end)), (1, false));
    history.write(&Record::Done { session: ME, span: Span { at, first: 0, count: 4 } });
    assert_eq!((history.tables.live(base), history.tables.may_go(base, end)), (0, true));
    let later = history.segments[1];
    assert!(!history.tables.may_go(later, history.end), "it would have to be folded again");
}

#[test]
fn session_that_begins_again_has_nothing_of_the_one_that_ended() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    let at = four(&mut history);
    history.tables.flush(history.end).unwrap();
    history.step(Step::Ended { session: 1 });
    history.step(Step::Began { session: 1 });
    history.write(&Record::Done { session: ME, span: Span { at, first: 1, count: 1 } });
    history.check_live();
    history.check_recovered();
}

#[test]
fn damaged_file_is_set_aside_and_the_log_is_folded_from_its_beginning() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    four(&mut history);
    history.tables.flush(history.end).unwrap();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("state.redb");
    fs::write(&file, b"something else").unwrap();
    let (tables, set_aside) = Tables::open(dir.path()).unwrap();
    let set_aside = set_aside.unwrap();
    assert_eq!(fs::read(set_aside.to).unwrap(), b"something else");
    assert_eq!(tables.applied(), LogPosition(0));
    (history.tables, history.dir) = (tables, dir);
    history.fold_all();
    history.check_live();
    history.check_recovered();
}

#[test]
fn bit_that_has_flipped_in_a_row_is_noticed_when_the_file_was_closed_in_order_too() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    history.tables.flush(history.end).unwrap();
    let dir = TempDir::new().unwrap();
    let old_dir = std::mem::replace(&mut history.dir, TempDir::new().unwrap());
    history.tables = Tables::open(history.dir.path()).unwrap().0;
    let mut bytes = fs::read(old_dir.path().join("state.redb")).unwrap();
    let text = b"client 1";
    let places = bytes.windows(text.len()).enumerate();
    let places = places.filter(|(_, window)| window == text).map(|(place, _)| place);
    let places: Vec<usize> = places.collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place] ^= 0x20);
    fs::write(dir.path().join("state.redb"), &bytes).unwrap();
    let (tables, set_aside) = Tables::open(dir.path()).unwrap();
    // The engine marks a file that it has found damaged; the rows are as they were.
    let aside = fs::read(set_aside.unwrap().to).unwrap();
    assert!(aside.len() == bytes.len() && aside[8192..] == bytes[8192..]);
    (history.tables, history.dir) = (tables, dir);
    history.fold_all();
    history.check_recovered();
}

/// Whatever the disk makes of the file, there are tables: those that were in it, or empty ones and a word about it.
#[test]
fn file_with_damage_anywhere_opens_or_is_set_aside() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    for _ in 0..20 {
        four(&mut history);
        history.tables.flush(history.end).unwrap();
    }
    let path = history.dir.path().join("state.redb");
    let dir = std::mem::replace(&mut history.dir, TempDir::new().unwrap());
    // Dropped, so closed in order.
    history.tables = Tables::open(history.dir.path()).unwrap().0;
    let whole = fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let mut set_aside = 0;
    for _ in 0..100 {
        let mut bytes = whole.clone();
        let start = random.usize(..bytes.len());
        let end = bytes.len().min(start + random.usize(1..=512));
        bytes[start..end].fill_with(|| random.u8(..));
        fs::write(&path, &bytes).unwrap();
        let (mut tables, aside) = Tables::open(dir.path()).unwrap();
        set_aside += usize::from(aside.is_some());
        let applied = tables.applied();
        assert_eq!(tables.recovered(applied).unwrap().sessions.is_empty(), aside.is_some());
    }
    assert!(set_aside > 10, "{set_aside}");
}

#[test]
fn record_of_a_newer_version_stops_the_fold_and_changes_nothing() {
    let mut history = History::new();
    history.step(Step::Began { session: 1 });
    let folded = history.tables.folded();
    match history.tables.apply(folded, &[200, 1, 2]) {
        Err(FoldError::Record { at, error: RecordError::UnknownKind(200) }) => {
            assert_eq!(at, folded);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(history.tables.folded(), folded);
}

#[test]
fn record_before_the_first_segment_is_refused() {
    let dir = TempDir::new().unwrap();
    let (mut tables, _) = Tables::open(dir.path()).unwrap();
    tables.begin_segment(LogPosition(100));
    let mut record = Vec::new();
    Record::SessionEnded { session: ME }.encode(&mut record);
    let outcome = tables.apply(LogPosition(99), &record[8..]);
    assert!(matches!(outcome, Err(FoldError::NoSegment { at: LogPosition(99) })), "{outcome:?}");
}

/// A record with four messages for the session.
fn four(history: &mut History) -> LogPosition {
    let at = history.end;
    let to = To { session: 1, qos: 2, identifiers: Vec::new(), is_shared: false };
    history.step(Step::Messages {
        topic: 0,
        payloads: vec![1; 4],
        targets: vec![to],
        publisher: None,
        retained: false,
    });
    at
}
