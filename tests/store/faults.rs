//! Whatever happens to the disk, at whichever call: what was acknowledged is read back, and nothing else than what was
//! appended.
//!
//! `STORE_SEED` and `STORE_ROUNDS` choose other random histories, and how many.

use fastrand::Rng;
use mailboxqtt::store::log::{Level, Settings};

use crate::disk::{Disk, Fault};
use crate::history::{Model, Process, Step, settings};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn batch(appends: &[&[usize]]) -> Step {
    let appends = appends.iter().map(|lengths| (lengths.to_vec(), Level::Always));
    Step::Batch(appends.collect())
}

fn batch_os(appends: &[&[usize]]) -> Step {
    let appends = appends.iter().map(|lengths| (lengths.to_vec(), Level::Os));
    Step::Batch(appends.collect())
}

/// Small, and with everything in them: several segments in a batch, one that is longer than a segment, recycled
/// ones, both levels, restarts of both kinds, an empty process.
fn histories() -> Vec<(Vec<Step>, Settings)> {
    let steps = [
        vec![batch(&[&[1]]), batch(&[&[600, 30], &[2]]), batch(&[&[300]])],
        vec![
            batch(&[&[400], &[500], &[600]]),
            Step::Retire(0),
            batch(&[&[900]]),
            Step::Retire(0),
            batch(&[&[900]]),
            batch(&[&[10], &[20]]),
        ],
        vec![
            batch_os(&[&[100], &[200]]),
            batch(&[&[300]]),
            batch_os(&[&[700], &[700]]),
            Step::Kill,
            batch(&[&[50]]),
        ],
        vec![
            batch(&[&[5000]]),
            batch(&[&[10]]),
            Step::Retire(0),
            Step::Reopen,
            Step::Reopen,
            batch(&[&[952]]),
            batch(&[&[944, 1]]),
            batch(&[&[4000]]),
            Step::Reopen,
            batch(&[&[10]]),
        ],
        vec![
            batch(&[&[500]]),
            Step::Kill,
            batch(&[&[500]]),
            Step::Kill,
            batch(&[&[500]]),
            Step::Retire(0),
            Step::Retire(0),
            batch(&[&[500], &[500]]),
        ],
    ];
    let sizes = [1024, 2100].map(|segment_bytes| Settings { segment_bytes, ..settings() });
    let all = sizes.iter().flat_map(|size| steps.iter().map(|steps| (steps.clone(), size.clone())));
    all.collect()
}

/// Runs until the log fails or the power goes.
fn run(disk: &Disk, steps: &[Step], settings: &Settings, model: &mut Model) -> Option<Process> {
    let mut process = Process::start(disk, settings, model).ok()?;
    let is_done = steps.iter().all(|step| process.step(step, model) && !disk.is_off());
    process.log.close();
    process.note_told(model);
    is_done.then_some(process)
}

/// Opens what is left, goes on a little, and looks once more.
fn go_on(disk: &Disk, settings: &Settings, model: &mut Model) {
    let mut process = Process::start(disk, settings, model).unwrap();
    assert!(process.step(&batch(&[&[40], &[800]]), model));
    assert!(process.step(&Step::Reopen, model));
    assert!(process.step(&batch(&[&[100]]), model));
    process.log.close();
}

fn calls_of(steps: &[Step], settings: &Settings) -> usize {
    let disk = Disk::default();
    assert!(run(&disk, steps, settings, &mut Model::default()).is_some());
    disk.calls()
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_call() {
    let mut rng = Rng::with_seed(1);
    let mut images = 0;
    for (steps, settings) in histories() {
        for call in 0..calls_of(&steps, &settings) {
            let (disk, mut model) = (Disk::default(), Model::default());
            disk.fail_at(call, Fault::PowerCut);
            run(&disk, &steps, &settings, &mut model);
            assert!(disk.is_off(), "call {call} is reached");
            for image in disk.images(64, &mut rng) {
                go_on(&image, &settings, &mut model.clone());
                images += 1;
            }
        }
    }
    assert!(images > 2000, "{images} images");
}

#[test]
fn second_power_cut_while_the_log_is_opened_takes_nothing_back() {
    let mut rng = Rng::with_seed(2);
    let next = [batch(&[&[70], &[900]])];
    for (steps, settings) in histories() {
        for call in 0..calls_of(&steps, &settings) {
            let (disk, mut model) = (Disk::default(), Model::default());
            disk.fail_at(call, Fault::PowerCut);
            run(&disk, &steps, &settings, &mut model);
            for first in disk.images(2, &mut rng) {
                for second in 0.. {
                    let (disk, mut model) = (first.copy(), model.clone());
                    disk.fail_at(second, Fault::PowerCut);
                    run(&disk, &next, &settings, &mut model);
                    if !disk.is_off() {
                        break;
                    }
                    for image in disk.images(3, &mut rng) {
                        Process::start(&image, &settings, &mut model.clone()).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_an_error_at_any_call() {
    let mut rng = Rng::with_seed(3);
    for (steps, settings) in histories() {
        for call in 0..calls_of(&steps, &settings) {
            for error in [EIO, ENOSPC] {
                let (disk, mut model) = (Disk::default(), Model::default());
                disk.fail_at(call, Fault::Error(error));
                run(&disk, &steps, &settings, &mut model);

                // The power goes afterwards,
                for image in disk.images(4, &mut rng) {
                    go_on(&image, &settings, &mut model.clone());
                }
                // or only the process ends, and the power goes when it has come back.
                model.expect_written();
                let disk = disk.copy();
                go_on(&disk, &settings, &mut model);
                for image in disk.images(4, &mut rng) {
                    go_on(&image, &settings, &mut model.clone());
                }
            }
        }
    }
}

#[test]
fn long_random_histories_keep_what_was_acknowledged() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("STORE_SEED").unwrap_or(0);
    for seed in first..first + number("STORE_ROUNDS").unwrap_or(60) {
        println!("STORE_SEED={seed}");
        random_history(&mut Rng::with_seed(seed));
    }
}

fn random_history(rng: &mut Rng) {
    let settings = Settings {
        segment_bytes: rng.u64(1024..8192),
        spare_segments_max: rng.usize(1..4),
        prepares_ahead: rng.bool(),
        ..settings()
    };
    let (mut disk, mut model) = (Disk::default(), Model::default());
    for _ in 0..6 {
        let fault = match rng.u8(0..4) {
            0 => Fault::Error(EIO),
            1 => Fault::Error(ENOSPC),
            _ => Fault::PowerCut,
        };
        disk.fail_at(rng.usize(0..400), fault);
        let steps: Vec<Step> = (0..rng.usize(1..60)).map(|_| random_step(rng, &settings)).collect();
        let is_done = run(&disk, &steps, &settings, &mut model).is_some();
        if !is_done || rng.bool() {
            let images = disk.images(4, rng);
            disk = images[rng.usize(0..images.len())].copy();
        } else {
            model.expect_written();
            disk = disk.copy();
        }
    }
    go_on(&disk, &settings, &mut model);
}

fn random_step(rng: &mut Rng, settings: &Settings) -> Step {
    match rng.u8(0..20) {
        0..3 => Step::Retire(rng.usize(0..3)),
        3 => Step::Reopen,
        4 => Step::Kill,
        _ => {
            let mut appends = Vec::new();
            for _ in 0..rng.usize(1..12) {
                let len_max = match rng.u8(0..20) {
                    0 => 2 * settings.segment_bytes as usize,
                    1..4 => 1000,
                    _ => 100,
                };
                let lengths = (0..rng.usize(1..4)).map(|_| rng.usize(1..=len_max)).collect();
                let level = if rng.u8(0..3) == 0 { Level::Os } else { Level::Always };
                appends.push((lengths, level));
            }
            Step::Batch(appends)
        }
    }
}
