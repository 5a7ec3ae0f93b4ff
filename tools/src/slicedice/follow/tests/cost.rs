//! What the requests of a cluster cost in a month, at the list price of S3 Standard in us-east-1: docs/performance.md says
//! the same figures.

use super::*;
use crate::push;
use zenith_store::{CountingStore, CountsSnapshot};

/// Dollars for a PUT or LIST: 0.005 for 1,000.
const WRITE: f64 = 0.005 / 1000.0;
/// Dollars for a GET or HEAD: 0.0004 for 1,000.
const READ: f64 = 0.0004 / 1000.0;
const HOUR: Duration = Duration::from_secs(3600);
const HOURS_A_MONTH: f64 = 730.0;

fn dollars_a_month(in_an_hour: &CountsSnapshot) -> f64 {
    let writes = in_an_hour.puts + in_an_hour.lists + in_an_hour.others;
    let reads = in_an_hour.gets + in_an_hour.heads;
    (writes as f64 * WRITE + reads as f64 * READ) * HOURS_A_MONTH
}

/// The same cluster through a store that counts.
fn counted(world: &mut World) -> std::sync::Arc<zenith_store::Counts> {
    let counting = CountingStore::new(Arc::clone(&world.session.store.objects));
    let counts = counting.counts();
    let store = world.session.store.wrapped(|_| counting);
    world.options = SlicerOptions::default();
    world.session = Session::of_cluster(&world.session.env, store, "main");
    counts
}

async fn until(world: &World, elapsed: Duration) {
    while world.session.env.clock.elapsed() < elapsed {
        tokio::task::yield_now().await;
    }
}

/// Archives a file while the follower stands still, so that no time passes.
fn push_at_once(world: &World, timeline: &TimelineChoice, path: &std::path::Path) {
    let push = async {
        let step = crate::cli::deadline::Step::default();
        push::wal::push(&world.session, timeline, path, &step).await.expect("pushed");
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(push)).join()).expect("pushed");
}

#[tokio::test]
async fn following_an_idle_cluster_costs_less_than_three_dollars_a_month() {
    let mut world = World::new(1).await;
    let counts = counted(&mut world);
    let stop = Stop::default();
    let mut hour = CountsSnapshot::default();
    let meanwhile = async {
        // The last record goes on in a segment that is not there, as it mostly does.
        world.archive(&[4, 5]).await;
        world.wait_for(Lsn(size().start_of(5).0 + 1)).await;
        let begun = world.session.env.clock.elapsed() + Duration::from_secs(60);
        until(&world, begun).await;
        let before = counts.snapshot();
        until(&world, begun + HOUR).await;
        hour = counts.snapshot().since(&before);
        stop.ask();
    };
    follow_through(&world, meanwhile, &stop).await.expect("stopped");
    let month = dollars_a_month(&hour);
    println!("{month:.2} dollars a month: {hour:?}");
    assert_eq!((hour.puts, hour.deletes, hour.others), (0, 0, 0), "{hour:?}");
    assert!(hour.lists > 0 && month < 3.0, "{month:.2} dollars a month: {hour:?}");
}

#[tokio::test]
async fn archiving_and_slicing_a_segment_a_minute_costs_less_than_nine_dollars_a_month() {
    let mut world = World::of_segments(2, 64).await;
    let counts = counted(&mut world);
    let stop = Stop::default();
    let folder = tempfile::tempdir().expect("folder");
    let main = TimelineChoice::Name("main".to_owned());
    let mut hour = CountsSnapshot::default();
    let meanwhile = async {
        let begun = world.session.env.clock.elapsed();
        let mut before = CountsSnapshot::default();
        for minute in 0..62u32 {
            let number = u64::from(minute) + 4;
            let path = folder.path().join(WalFile::Segment { tli: 1, segment: number }.name(size()));
            std::fs::write(&path, &world.segments[number as usize - 2]).expect("written");
            push_at_once(&world, &main, &path);
            until(&world, begun + Duration::from_secs(60) * (minute + 1)).await;
            match minute {
                0 => before = counts.snapshot(),
                60 => hour = counts.snapshot().since(&before),
                _ => {}
            }
        }
        stop.ask();
    };
    follow_through(&world, meanwhile, &stop).await.expect("stopped");
    let month = dollars_a_month(&hour);
    println!("{month:.2} dollars a month: {hour:?}");
    assert!(hour.puts >= 60 && month < 9.0, "{month:.2} dollars a month: {hour:?}");
}
