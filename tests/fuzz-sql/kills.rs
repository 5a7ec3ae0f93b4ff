//! Zenith's commands killed at random moments and run again, and two of each at once: nothing is lost, nothing is wrong, no error
//! lasts.
//!
//! A moment is drawn as a share of the time that the command takes when it is left alone. Whether the kill hits makes no
//! difference to what must hold afterwards; it is counted.

use crate::compare::{Compared, Oracle, Target};
use crate::dice::Dice;
use crate::plan::{Plan, Step};
use crate::primary::{Archiving, Primary};
use crate::wal::Archived;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use zenith_store::Env;
use zenith_testkit::mask::compare_directories;
use zenith_testkit::oracle::{insert_lsn, wal_segment_size};
use zenith_testkit::pg::{self, Pg};

/// Steps of the plan that are done: the workload matters less here.
const STEPS: usize = 25;

/// What happened to the commands of a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counted {
    /// How many of each command were killed while they ran.
    killed: BTreeMap<String, usize>,
    /// How many had ended before the moment came.
    missed: usize,
    /// How many pairs ran at once.
    pairs: usize,
}

impl Counted {
    /// How many were killed.
    pub(crate) fn killed(&self) -> usize {
        self.killed.values().sum()
    }

    /// Adds those of another run.
    pub(crate) fn add(&mut self, other: &Counted) {
        for (command, killed) in &other.killed {
            *self.killed.entry(command.clone()).or_default() += killed;
        }
        self.missed += other.missed;
        self.pairs += other.pairs;
    }
}

/// See the module.
struct Killer {
    dice: Dice,
    env: Env,
    counted: Counted,
}

impl Killer {
    /// Runs a command to its end, and says how long it took.
    fn leave_alone(&self, command: &mut Command) -> Duration {
        let begun = self.env.clock.elapsed();
        pg::run(command);
        self.env.clock.elapsed() - begun
    }

    /// Starts a command and kills it at a moment within this time; `true` if it ran then. One that has ended before must have
    /// succeeded.
    fn kill(&mut self, command: &mut Command, within: Duration) -> bool {
        let after = within.as_secs_f64() * self.dice.share();
        let mut child = start(command);
        pg::run(pg::command("sleep").arg(format!("{after:.4}")));
        drop(child.kill());
        let output = child.wait_with_output().expect("it was started");
        let killed = output.status.signal().is_some();
        assert!(killed || output.status.success(), "{command:?}: {}", text(&output));
        if killed {
            *self.counted.killed.entry(name(command)).or_default() += 1;
        } else {
            self.counted.missed += 1;
        }
        killed
    }

    /// Two at once; what became of each.
    fn both(&mut self, one: &mut Command, other: &mut Command) -> [Output; 2] {
        self.counted.pairs += 1;
        let children = [start(one), start(other)];
        children.map(|child| child.wait_with_output().expect("it was started"))
    }

    /// Base images: the first push of all, too, may be killed.
    fn base(&mut self, primary: &Primary) {
        let base = || primary.zenith("zenith_push", &["base", "--checkpoint=fast"]);
        self.kill(&mut base(), Duration::from_millis(500));
        let takes = self.leave_alone(&mut base());
        for _ in 0..2 {
            self.kill(&mut base(), takes);
        }
        for output in self.both(&mut base(), &mut base()) {
            assert!(output.status.success(), "two base images at once: {}", text(&output));
        }
    }

    /// These files of the plain archive.
    fn push(&mut self, primary: &Primary, files: &[PathBuf]) {
        let mut takes = Duration::from_millis(50);
        for file in files {
            let path = file.display().to_string();
            let push = || {
                let mut push = primary.zenith("zenith_push", &["wal", &path]);
                // As the server runs it: a backup history file does not say which cluster it is of.
                push.current_dir(primary.server.data());
                push
            };
            if self.dice.percent(50) {
                self.kill(&mut push(), takes);
            }
            if self.dice.percent(30) {
                for output in self.both(&mut push(), &mut push()) {
                    assert!(output.status.success(), "{path} pushed twice at once: {}", text(&output));
                }
            } else {
                takes = self.leave_alone(&mut push());
            }
        }
    }

    /// What was pushed is sliced.
    fn slice(&mut self, primary: &Primary) {
        let slice = || primary.zenith("zenith_slicedice", &[]);
        for share in [4, 2, 1] {
            self.kill(&mut slice(), Duration::from_millis(1200) / share);
        }
        let ended = self.both(&mut slice(), &mut slice());
        // Whoever starts later takes over: the other one says so and ends.
        assert!(
            ended.iter().any(|output| output.status.success()),
            "two slicers at once: {}\n{}",
            text(&ended[0]),
            text(&ended[1])
        );
        pg::run(&mut slice());
    }

    /// Restores that are killed, what they leave, and the same again.
    fn restore(&mut self, oracle: &Oracle<'_>, target: &Target) -> Pg {
        let whole = pg::server_dir();
        let takes = self.leave_alone(&mut oracle.restore_command(target, &whole));
        let whole = adopt(whole);
        let home = pg::server_dir();
        for _ in 0..3 {
            let killed = self.kill(&mut oracle.restore_command(target, &home), takes);
            let control = home.path().join("data/global/pg_control").exists();
            // pg_control comes last: no server starts on less than everything.
            assert!(killed || control, "it said that it was done");
            if control {
                is_the_same(&home, &whole);
            }
            empty(&home);
        }
        let other = pg::server_dir();
        let ended = self
            .both(&mut oracle.restore_command(target, &home), &mut oracle.restore_command(target, &other));
        for output in &ended {
            assert!(output.status.success(), "two restores at once: {}", text(output));
        }
        is_the_same(&other, &whole);

        let contested = pg::server_dir();
        let into_it = || oracle.restore_command(target, &contested);
        let ended = self.both(&mut into_it(), &mut into_it());
        let succeeded = ended.iter().filter(|output| output.status.success()).count();
        let [one, two] = ended.each_ref().map(text);
        assert_eq!(succeeded, 1, "two restores at once into one directory: {one}\n{two}");
        is_the_same(&contested, &whole);
        adopt(home)
    }
}

/// Panics unless `data` below a directory has the pages of a restore that was left alone.
fn is_the_same(home: &TempDir, whole: &Pg) {
    let same = compare_directories(&home.path().join("data"), whole.data());
    assert!(same.is_ok(), "{same:?}");
}

fn adopt(home: TempDir) -> Pg {
    let data = home.path().join("data");
    Pg::adopt(home, data)
}

/// `zenith_push wal`, `zenith_restore` …
fn name(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let verb = command.get_args().next().filter(|verb| *verb == "wal" || *verb == "base");
    verb.map_or_else(|| program.to_string(), |verb| format!("{program} {}", verb.to_string_lossy()))
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command exists")
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{stdout}\n{stderr}", output.status)
}

/// What a killed restore leaves has to be removed by hand.
fn empty(home: &TempDir) {
    for name in ["data", "spread"] {
        pg::run(pg::command("rm").arg("-rf").arg(home.path().join(name)));
    }
}

/// The files of a plain archive, in the order in which they were archived.
fn archived_files(primary: &Primary) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(primary.plain()).expect("the archive").flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Runs a seed's kills and compares; what was counted, or what is wrong.
pub(crate) fn seed(seed: u64) -> Result<Counted, String> {
    let plan = Plan::of(seed);
    let mut killer =
        Killer { dice: Dice::new(seed, "kills"), env: Env::system(), counted: Counted::default() };
    let mut primary = Primary::start(&plan.settings, Archiving::Plain);
    primary.set_up(&plan);
    killer.base(&primary);
    let base = primary.plain_base();
    let from = insert_lsn(&primary.server);
    let steps = plan.steps.iter().filter(|step| !matches!(step, Step::Base(_) | Step::Slice));
    for step in steps.take(STEPS) {
        primary.step(step);
    }
    let to = insert_lsn(&primary.server);
    primary.archive();
    let files = archived_files(&primary);
    let (early, late) = files.split_at(files.len() / 2);
    killer.push(&primary, early);
    killer.slice(&primary);
    killer.push(&primary, late);
    if plan.slice_at_the_end {
        killer.slice(&primary);
    }

    let archived = Archived::read(primary.plain(), wal_segment_size(&primary.server), from, to);
    let oracle = Oracle { primary: &primary, plan: &plan, base: &base, archived: &archived };
    let target = Target::of(plan.moments[1], &archived, &primary.names);
    let ours = killer.restore(&oracle, &target);
    let theirs = oracle.recover(&target);
    let mut different = oracle.compare(&ours, &theirs, &mut Compared::default());
    if different.is_empty() {
        different = oracle.compare_dumps(&ours, &theirs);
    }
    if different.is_empty() { Ok(killer.counted) } else { Err(crate::run::differences(&target, different)) }
}
