//! What is wrong with a status: `--max-age`.

use super::gather::{Status, TimelineStatus};
use crate::cli::units;
use std::time::{Duration, SystemTime};

/// The store's clock and this machine's may differ by so much before ages are wrong enough to say so.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

/// What is wrong, one sentence each, naming cluster and timeline.
pub fn problems(status: &Status, now: SystemTime, max_age: Duration) -> Vec<String> {
    if status.clusters.iter().all(|cluster| cluster.timelines.is_empty()) {
        return vec!["the store holds no timeline: nothing was ever pushed to it".to_owned()];
    }
    let mut problems = Vec::new();
    for cluster in &status.clusters {
        for timeline in &cluster.timelines {
            let name = timeline.names.first().unwrap_or(&timeline.id);
            let found = timeline_problems(timeline, now, max_age);
            problems
                .extend(found.into_iter().map(|problem| format!("{}/{name}: {problem}", cluster.cluster)));
        }
    }
    problems
}

fn timeline_problems(timeline: &TimelineStatus, now: SystemTime, max_age: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    let age = |then: Option<SystemTime>| then.map(|then| now.duration_since(then).unwrap_or_default());
    if timeline.base_images.is_empty() && timeline.ancestor.is_none() {
        problems.push("there is no base image, so nothing can be restored: run zenith_push base".to_owned());
    }
    match age(timeline.times.last_archived) {
        None => problems.push("no WAL was ever archived: check archive_mode and archive_command".to_owned()),
        Some(age) if age > max_age => problems.push(format!(
            "the last WAL file was archived {} ago: check archive_command, pg_stat_archiver and archive_timeout",
            units::duration(age)
        )),
        Some(_) => {}
    }
    // Every age would be none, and nothing too old.
    if let Some(ahead) = timeline.times.last_archived.and_then(|then| then.duration_since(now).ok())
        && ahead > CLOCKS_APART_MAX
    {
        problems.push(format!(
            "the last WAL file was archived {} after what this machine's clock says now, so that nothing can be told about \
             ages: set this machine's clock, or the store's",
            units::duration(ahead)
        ));
    }
    // Pushes run in parallel, so that a later file may be there first for a moment.
    if let Some(missing) = &timeline.missing
        && age(timeline.times.behind_missing).is_some_and(|age| age > max_age)
    {
        problems.push(format!(
            "WAL segment {} is missing while {} is there: archive it, or take a new base image with zenith_push base",
            missing.segment, missing.next
        ));
    }
    if let Some(age) = age(timeline.times.unsliced_since).filter(|age| *age > max_age) {
        problems.push(format!(
            "WAL that was archived {} ago is not sliced: is zenith_slicedice --follow running?",
            units::duration(age)
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::gather::{BaseStatus, ClusterStatus, Count, Missing, Times};
    use super::*;
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;
    use zenith_pgformat::Lsn;

    const MAX_AGE: Duration = Duration::from_secs(600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn ago(seconds: u64) -> Option<SystemTime> {
        Some(now() - Duration::from_secs(seconds))
    }

    fn healthy() -> TimelineStatus {
        TimelineStatus {
            names: vec!["main".to_owned()],
            id: "x".to_owned(),
            system_identifier: "7".to_owned(),
            pg_major: 15,
            wal_segment_size: 1 << 24,
            ancestor: None,
            manifest_version: 3,
            base_images: vec![BaseStatus {
                id: "b".to_owned(),
                tli: 1,
                redo: Lsn(1),
                end: Lsn(2),
                confirmed: true,
                taken_at: String::new(),
                data_bytes: 0,
                stored_bytes: 0,
            }],
            ranges: Vec::new(),
            lost: Vec::new(),
            sliced: None,
            archived: None,
            last_archived_at: None,
            missing: None,
            off_history: Vec::new(),
            unsliced_since: None,
            layers: BTreeMap::new(),
            wal: Count::default(),
            times: Times { last_archived: ago(30), ..Times::default() },
        }
    }

    fn problems_of(timeline: TimelineStatus) -> Vec<String> {
        let clusters = vec![ClusterStatus { cluster: "c".to_owned(), timelines: vec![timeline] }];
        problems(&Status { store: String::new(), clusters }, now(), MAX_AGE)
    }

    #[test]
    fn a_healthy_timeline_has_no_problem() {
        assert_eq!(problems_of(healthy()), Vec::<String>::new());
    }

    #[test]
    fn an_old_archive_a_stopped_slicer_and_a_gap_are_each_named() {
        let mut old = healthy();
        old.times.last_archived = ago(601);
        assert!(problems_of(old)[0].contains("c/main: the last WAL file was archived 10 min 01 s ago"));
        let mut stopped = healthy();
        stopped.times.unsliced_since = ago(900);
        assert!(problems_of(stopped)[0].contains("zenith_slicedice"));
        let mut gap = healthy();
        gap.missing = Some(Missing { segment: "A".to_owned(), next: "B".to_owned() });
        gap.times.behind_missing = ago(900);
        assert!(problems_of(gap)[0].contains("segment A is missing while B is there"));
    }

    #[test]
    fn a_clock_that_is_behind_the_stores_is_a_problem_and_no_sign_of_health() {
        let mut behind = healthy();
        behind.times.last_archived = Some(now() + Duration::from_secs(7200));
        let problems = problems_of(behind);
        assert!(problems[0].contains("2 h 00 min after what this machine's clock says"), "{problems:?}");
        let mut nearly = healthy();
        nearly.times.last_archived = Some(now() + Duration::from_secs(200));
        assert_eq!(problems_of(nearly), Vec::<String>::new());
    }

    #[test]
    fn what_has_just_happened_is_no_problem_yet() {
        let mut busy = healthy();
        busy.times.unsliced_since = ago(5);
        busy.missing = Some(Missing { segment: "A".to_owned(), next: "B".to_owned() });
        busy.times.behind_missing = ago(5);
        assert_eq!(problems_of(busy), Vec::<String>::new());
    }

    #[test]
    fn an_empty_store_and_a_timeline_without_a_base_image_are_problems() {
        let empty = Status { store: String::new(), clusters: Vec::new() };
        assert_eq!(problems(&empty, now(), MAX_AGE).len(), 1);
        let mut without = healthy();
        without.base_images.clear();
        assert!(problems_of(without)[0].contains("zenith_push base"));
    }
}
