//! Wall clocks that are wrong, or jump: the primary's, and those of Zenith's commands, from 1999 to ten years from now.
//! `docs/edge-cases.md`, "Clocks".

use crate::harness::{Chain, TestStore};
use crate::oracle::Backup;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};
use zenith_store::Env;
use zenith_testkit::clock::{HOUR, WallClock, YEAR};
use zenith_testkit::outcome::{ended, fails, said, succeeds};
use zenith_testkit::pg::{self, Pg, PgOptions};

/// 1999-06-22, before the origin of `TimestampTz`.
const BEFORE_2000: u64 = 930_000_000;

/// From now to [`BEFORE_2000`], in seconds.
fn to_1999() -> i64 {
    let now = Env::system().clock.now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    BEFORE_2000.cast_signed() - now.as_secs().cast_signed()
}

fn at_clock(mut command: Command, clock: &WallClock) -> Command {
    command.envs(clock.env());
    command
}

/// A command of Zenith's with this clock, which must succeed.
fn run(chain: &Chain, clock: &WallClock, program: &str, arguments: &[&str]) {
    let output = ended(&mut at_clock(chain.zenith(program, arguments), clock));
    assert_eq!(output.status.code(), Some(0), "{program} {arguments:?}: {}", said(&output));
}

/// A primary that archives, with a table that says at what time its server thought that each row was made.
fn primary(store: TestStore, clock: &WallClock) -> Chain {
    let mut options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("track_commit_timestamp = on");
    for (name, value) in clock.env() {
        options = options.env(&name, &value);
    }
    let chain = Chain::start(store, options);
    chain.primary.sql("CREATE TABLE steps (step int, at timestamptz)");
    chain
}

fn steps(server: &Pg) -> String {
    server.sql("SELECT string_agg(step || ' ' || extract(epoch FROM at), ',' ORDER BY step) FROM steps")
}

/// Longer than any step of a follower's takes on a slow machine.
const LINE_TIMEOUT: Duration = Duration::from_secs(300);

/// The lines that a process prints, as they come; what nobody reads is kept, so that the process is never held up.
struct Lines(Receiver<String>);

impl Lines {
    fn of(output: impl Read + Send + 'static) -> Lines {
        let (sender, lines) = std::sync::mpsc::channel();
        let printed = BufReader::new(output).lines().map_while(Result::ok);
        std::thread::spawn(move || printed.for_each(|line| drop(sender.send(line))));
        Lines(lines)
    }

    /// The next one; `None` at the end.
    fn next(&self) -> Option<String> {
        match self.0.recv_timeout(LINE_TIMEOUT) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the follower has said nothing for {LINE_TIMEOUT:?}"),
        }
    }
}

/// A follower that runs, and what it prints. It is killed where a test ends without it having ended.
struct Follower {
    child: Child,
    reports: Lines,
    warnings: Lines,
}

impl Follower {
    fn start(chain: &Chain, clock: &WallClock) -> Follower {
        let mut command = at_clock(chain.zenith("zenith_slicedice", &["--follow", "--json"]), clock);
        command.env("RUST_LOG", "warn").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let reports = Lines::of(child.stdout.take().expect("piped"));
        let warnings = Lines::of(child.stderr.take().expect("piped"));
        Follower { child, reports, warnings }
    }

    /// Its next report of what it sliced.
    fn report(&self) -> String {
        self.reports.next().expect("a report")
    }

    /// What it says, up to a line with these words.
    fn warns(&self, words: &str) -> String {
        let mut said = String::new();
        while let Some(line) = self.warnings.next() {
            if line.contains(words) {
                return line;
            }
            said.push_str(&line);
        }
        panic!("it never said \"{words}\": {said}");
    }

    /// Its exit status.
    fn ended(mut self) -> Option<i32> {
        while self.reports.next().is_some() {}
        self.child.wait().expect("ended").code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Neither does anything to one that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The primary's clock at each step; the commands' clocks are others, and jump while they run.
fn jumps() -> [(i64, Vec<i64>); 6] {
    let past = to_1999();
    [
        (0, vec![past, 10 * YEAR, 0]),
        (10 * YEAR, vec![-HOUR]),
        (-HOUR, vec![past]),
        (past, vec![YEAR, -YEAR]),
        (YEAR, vec![0, HOUR, -10 * YEAR]),
        (0, vec![10 * YEAR]),
    ]
}

#[test]
fn clocks_that_are_wrong_or_jump_lose_nothing_and_change_no_answer() {
    let (primary_clock, clock, right) = (WallClock::new(), WallClock::new(), WallClock::new());
    let past = to_1999();
    let chain = primary(TestStore::folder(), &primary_clock);
    // Not jumping: libpq ends a connection that takes ten years by the wall clock, and says so.
    clock.set(&[past]);
    run(&chain, &clock, "zenith_push", &["base"]);
    let backup = Backup::take(&chain, &[]);

    let (mut lsns, mut states) = (Vec::new(), Vec::new());
    for (step, (of_primary, of_commands)) in jumps().into_iter().enumerate() {
        primary_clock.set(&[of_primary]);
        clock.set(&of_commands);
        chain.primary.sql(&format!("INSERT INTO steps VALUES ({step}, clock_timestamp())"));
        lsns.push(chain.primary.sql("SELECT pg_current_wal_insert_lsn()"));
        states.push(steps(&chain.primary));
        chain.primary.sql(&format!("SELECT pg_create_restore_point('step {step}')"));
        chain.archive();
        run(&chain, &clock, "zenith_slicedice", &[]);
        run(&chain, &clock, "zenith", &["status"]);
    }
    clock.set(&[past]);
    run(&chain, &clock, "zenith", &["check", "--wal"]);
    let seconds =
        "SELECT string_agg(round(extract(epoch FROM at - now()))::text, ',' ORDER BY step) FROM steps";
    let seconds = chain.primary.sql(seconds);
    let jumped: Vec<i64> = seconds.split(',').map(|seconds| seconds.parse().expect("a number")).collect();
    assert_eq!(jumped.len(), jumps().len(), "{seconds}");
    for (jumped, (offset, _)) in jumped.into_iter().zip(jumps()) {
        // Less by what this test has taken.
        assert!(jumped.abs_diff(offset) < 12 * HOUR.unsigned_abs(), "the clock never jumped: {seconds}");
    }

    // By name, by LSN, and by time, which means the times in the WAL, in the WAL's order.
    let restored = |offsets: &[i64], target: [&str; 2]| {
        clock.set(offsets);
        let home = pg::server_dir();
        let data = home.path().join("data");
        let mut command = at_clock(chain.zenith("zenith_restore", &target), &clock);
        let output = ended(command.arg("-D").arg(&data));
        assert_eq!(output.status.code(), Some(0), "{target:?}: {}", said(&output));
        let server = Pg::adopt(home, data);
        server.start();
        steps(&server)
    };
    assert_eq!(restored(&[10 * YEAR, past], ["--name", "step 3"]), states[3]);
    assert_eq!(restored(&[past], ["--lsn", &lsns[2]]), states[2]);
    let committed = |step: u32| {
        let at = format!("SELECT pg_xact_commit_timestamp(xmin) FROM steps WHERE step = {step}");
        chain.primary.sql(&at)
    };
    // Step 1 was committed ten years from now, later than step 4.
    assert_eq!(restored(&[-YEAR, 10 * YEAR], ["--time", &committed(4)]), states[0]);
    assert_eq!(restored(&[past], ["--time", &committed(1)]), states[5]);
    let theirs = backup.recover(&chain, &[&format!("recovery_target_time = '{}'", committed(4))]);
    assert_eq!(steps(&theirs), states[0]);
    // At the time of step 3 there was nothing but the base image, by the same order.
    let nowhere = pg::server_dir();
    let mut command = at_clock(chain.zenith("zenith_restore", &["--time", &committed(3), "-D"]), &clock);
    fails(&ended(command.arg(nowhere.path().join("data"))), &["oldest that can be restored"]);

    // A clock that is behind is a problem of its own; one that is right again leaves nothing behind.
    clock.set(&[past]);
    let status = ["status", "--max-age", "1d"];
    fails(&ended(&mut at_clock(chain.zenith("zenith", &status), &clock)), &["this machine's clock"]);
    clock.set(&[YEAR]);
    fails(&ended(&mut at_clock(chain.zenith("zenith", &status), &clock)), &["check archive_command"]);
    run(&chain, &right, "zenith", &status);
}

#[test]
fn the_slicer_that_came_last_holds_the_role_whatever_the_clocks_say() {
    let (right, ahead, behind) = (WallClock::new(), WallClock::new(), WallClock::new());
    let chain = primary(TestStore::folder(), &right);
    run(&chain, &right, "zenith_push", &["base"]);
    ahead.set(&[10 * YEAR]);
    behind.set(&[to_1999()]);
    chain.primary.sql("INSERT INTO steps VALUES (0, now())");
    chain.archive();
    let first = Follower::start(&chain, &ahead);
    let report = first.report();
    run(&chain, &behind, "zenith_slicedice", &[]);
    chain.primary.sql("INSERT INTO steps VALUES (1, now())");
    chain.archive();
    let fenced = first.warns("error");
    assert!(fenced.contains("epoch"), "{fenced}; it had sliced {report}");
    assert_eq!(first.ended(), Some(1));
    run(&chain, &behind, "zenith_slicedice", &[]);
    run(&chain, &right, "zenith", &["check", "--wal"]);
    let restored = chain.restore(&[]);
    restored.start();
    assert_eq!(steps(&restored), steps(&chain.primary));
}

#[test]
fn a_store_that_refuses_a_wrong_clock_is_told_as_that_and_all_goes_on_when_the_clock_is_right() {
    let (right, clock) = (WallClock::new(), WallClock::new());
    let chain = primary(TestStore::minio(), &right);
    run(&chain, &right, "zenith_push", &["base"]);
    chain.primary.sql("INSERT INTO steps VALUES (0, now())");
    let segment = chain.primary.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    chain.archive();
    run(&chain, &right, "zenith_slicedice", &[]);

    let here = chain.primary.data().join("pg_wal").join(&segment).display().to_string();
    let folder = pg::server_dir();
    let data = folder.path().join("data").display().to_string();
    let there = folder.path().join("segment").display().to_string();
    let commands: [(&str, &[&str], i32); 7] = [
        ("zenith_push", &["wal", &here], 1),
        ("zenith_push", &["base"], 1),
        ("zenith_slicedice", &[], 1),
        ("zenith", &["status"], 1),
        ("zenith", &["check", "--wal"], 1),
        ("zenith_restore", &["-D", &data], 1),
        // Not 1, which PostgreSQL takes for the end of the archive.
        ("zenith_restore", &["wal", &segment, &there], 255),
    ];
    for wrong in [HOUR, -HOUR, 10 * YEAR, to_1999()] {
        clock.set(&[wrong]);
        for (program, arguments, code) in commands {
            let output = ended(&mut at_clock(chain.zenith(program, arguments), &clock));
            let text = said(&output);
            assert_eq!(output.status.code(), Some(code), "{program} {arguments:?}: {text}");
            assert!(text.contains("its clock says") && text.contains("this machine's"), "{program}: {text}");
            assert!(!text.contains("credentials"), "{program}: {text}");
        }
    }

    // A follower waits until the clock is set, and goes on.
    clock.set(&[0]);
    let follower = Follower::start(&chain, &clock);
    chain.primary.sql("INSERT INTO steps VALUES (1, now())");
    chain.archive();
    follower.report();
    clock.set(&[-HOUR]);
    let held_up = follower.warns("held up");
    assert!(held_up.contains("its clock says"), "{held_up}");
    chain.primary.sql("INSERT INTO steps VALUES (2, now())");
    chain.archive();
    clock.set(&[0]);
    follower.report();
    pg::run(Command::new("kill").args(["-TERM", &follower.child.id().to_string()]));
    assert_eq!(follower.ended(), Some(0));

    for (program, arguments, _) in commands {
        succeeds(&ended(&mut at_clock(chain.zenith(program, arguments), &clock)));
    }
    assert!(
        std::fs::read(&there).expect("the segment")
            == std::fs::read(chain.plain().join(&segment)).expect("archived")
    );
    let restored = chain.restore(&[]);
    restored.start();
    assert_eq!(steps(&restored), steps(&chain.primary));
}
