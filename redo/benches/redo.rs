//! How long one page takes, from the caller's thread and back: `cargo bench -p zenith-redo --bench redo`. For scale: Neon's
//! redo process, one pipe round trip a page, is published at 32 us for 2 records and 139 us for 26 KB of records.

use std::time::Instant;
use zenith_pgformat::Fork;
use zenith_redo::{Change, PageRequest, RedoOptions, RedoPool, selftest};

/// How often each case runs.
const ROUNDS: usize = 4000;

#[allow(clippy::disallowed_methods)] // a stopwatch is what this program is
fn median_micros(pool: &RedoPool, requests: &[PageRequest]) -> f64 {
    let mut times: Vec<f64> = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + ROUNDS / 10 {
        let batch = requests.to_vec();
        let start = Instant::now();
        let pages = pool.redo_blocking(batch);
        let micros = start.elapsed().as_secs_f64() * 1e6;
        assert!(pages.iter().all(Result::is_ok));
        if round >= ROUNDS / 10 {
            times.push(micros / requests.len() as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let pool = RedoPool::start(&RedoOptions { workers: Some(1), ..RedoOptions::default() })
        .expect("redo works here");
    let vector =
        selftest::vectors().expect("built-in").into_iter().find(|v| v.name.contains("heap")).expect("heap");
    let record = |(end, raw): &(_, bytes::Bytes)| Change::record(*end, raw.clone());
    let request = |changes: Vec<Change>| PageRequest {
        node: vector.node,
        fork: Fork::Main,
        block: vector.block,
        base: None,
        changes,
        hint_bits_logged: true,
    };
    let short = request(vector.records.iter().take(2).map(record).collect());
    let mut changes = Vec::new();
    let mut bytes = 0;
    for change in vector.records.iter().cycle().map(record) {
        bytes += change.bytes().len();
        changes.push(change);
        if bytes >= 26 << 10 {
            break;
        }
    }
    let long = request(changes);
    let cases = [("2 records", vec![short.clone()]), ("26 KB of records", vec![long.clone()])];
    for (name, batch) in cases {
        let records = batch[0].changes.len();
        println!("{name} ({records}), alone: {:.1} us a page", median_micros(&pool, &batch));
    }
    println!("2 records, 64 pages a batch: {:.1} us a page", median_micros(&pool, &vec![short; 64]));
    println!("26 KB of records, 16 pages a batch: {:.1} us a page", median_micros(&pool, &vec![long; 16]));
}
