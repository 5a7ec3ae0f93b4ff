//! What a seed does: drawn as a whole before anything runs, from the seed alone.

use crate::dice::Dice;
use crate::settings::Settings;
use crate::sql;

/// Sessions that stay open.
pub(crate) const CLIENTS: usize = 3;
/// More than so many prepared transactions are never left waiting at once: what they have locked nobody else can use.
const WAITING: usize = 2;

/// One thing that happens.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Step {
    /// SQL in one of the sessions, to its end.
    Client(usize, String),
    /// SQL in a database, from a session of its own.
    Database(String, String),
    /// A restore point.
    Name(String),
    /// A base image while this is written.
    Base(String),
    /// Everything so far is archived and sliced.
    Slice,
    /// The server ends like this while this is written, and starts again.
    Crash(Crash, String),
    /// A clean stop and a start with other settings.
    Restart(Vec<String>),
}

/// How the primary ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crash {
    /// `pg_ctl stop -m immediate`.
    Immediate,
    /// SIGKILL for the postmaster; what it was the parent of ends when it notices.
    Postmaster,
    /// SIGKILL for a backend: the postmaster starts everything else again.
    Backend,
}

/// A moment that is restored.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Moment {
    /// The end of some record, this far through all of them.
    Record(f64),
    /// Some restore point, this far through all of them.
    Name(f64),
    /// The end of the archive.
    End,
}

/// See the module.
#[derive(PartialEq, Debug)]
pub(crate) struct Plan {
    /// How the primary is made.
    pub(crate) settings: Settings,
    /// Whether the primary logs every page that a record changes (`wal_consistency_checking`), and `zenith check --wal`
    /// compares with them.
    pub(crate) checked: bool,
    /// What happens before the first base image.
    pub(crate) setup: Vec<String>,
    /// What happens after it.
    pub(crate) steps: Vec<Step>,
    /// Whether what was archived last is sliced, or left to each restore.
    pub(crate) slice_at_the_end: bool,
    /// Moments to restore; the last one's dump is compared, too.
    pub(crate) moments: Vec<Moment>,
    /// Whether what is still prepared is committed before the dump.
    pub(crate) commit_prepared: bool,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Plan {
        let settings = Settings::draw(&mut Dice::new(seed, "settings"));
        let mut writer = Writer::new(Dice::new(seed, "steps"));
        let setup = sql::setup(&mut writer.dice, settings.tablespace);
        let length = writer.dice.within(45, 75);
        while writer.steps.len() < length as usize {
            writer.step();
        }
        let mut dice = Dice::new(seed, "moments");
        let early = if writer.names > 0 && dice.percent(40) {
            Moment::Name(dice.share())
        } else {
            Moment::Record(dice.share())
        };
        let late = if dice.percent(25) { Moment::End } else { Moment::Record(dice.share()) };
        Plan {
            settings,
            checked: Dice::new(seed, "consistency checking").percent(30),
            setup,
            steps: writer.steps,
            slice_at_the_end: dice.percent(60),
            moments: vec![early, late],
            commit_prepared: dice.percent(50),
        }
    }
}

/// A session as the plan knows it.
#[derive(Clone, Copy, Default)]
struct Client {
    in_a_transaction: bool,
    savepoints: u32,
}

/// Draws steps one after another.
struct Writer {
    dice: Dice,
    steps: Vec<Step>,
    clients: [Client; CLIENTS],
    prepared: u32,
    waiting: Vec<u32>,
    names: u32,
    /// Steps of which one in a run is enough: they take a second or more.
    bases: u32,
    crashes: u32,
    restarts: u32,
    slices: u32,
}

impl Writer {
    fn new(dice: Dice) -> Writer {
        Writer {
            dice,
            steps: Vec::new(),
            clients: [Client::default(); CLIENTS],
            prepared: 0,
            waiting: Vec::new(),
            names: 0,
            bases: 0,
            crashes: 0,
            restarts: 0,
            slices: 0,
        }
    }

    fn step(&mut self) {
        match self.dice.within(0, 99) {
            0..=2 => self.base(),
            3..=5 => self.slice(),
            6..=8 => self.crash(),
            9 => self.restart(),
            10..=13 => self.name(),
            14..=17 => {
                let sql = sql::about_databases(&mut self.dice);
                self.steps.push(Step::Database("postgres".to_owned(), sql));
            }
            18..=21 => {
                let (database, sql) = (sql::database(&mut self.dice), sql::in_a_database(&mut self.dice));
                self.steps.push(Step::Database(database, sql));
            }
            _ => self.client(),
        }
    }

    fn base(&mut self) {
        if self.bases < 1 {
            self.bases += 1;
            self.steps.push(Step::Base(sql::load(&mut self.dice)));
        }
    }

    fn slice(&mut self) {
        if self.slices < 2 {
            self.slices += 1;
            self.steps.push(Step::Slice);
        }
    }

    fn crash(&mut self) {
        if self.crashes < 2 {
            self.crashes += 1;
            let how = self.dice.pick(&[Crash::Immediate, Crash::Postmaster, Crash::Backend]);
            self.clients = [Client::default(); CLIENTS];
            self.steps.push(Step::Crash(how, sql::load(&mut self.dice)));
        }
    }

    fn restart(&mut self) {
        if self.restarts < 1 {
            self.restarts += 1;
            self.clients = [Client::default(); CLIENTS];
            self.steps.push(Step::Restart(Settings::draw_changing(&mut self.dice)));
        }
    }

    fn name(&mut self) {
        self.steps.push(Step::Name(format!("point {}", self.names)));
        self.names += 1;
    }

    fn client(&mut self) {
        let index = self.dice.within(0, CLIENTS as u32 - 1) as usize;
        let sql = if self.clients[index].in_a_transaction { self.inside(index) } else { self.outside(index) };
        self.steps.push(Step::Client(index, sql));
    }

    fn outside(&mut self, index: usize) -> String {
        if self.waiting.len() > WAITING || (!self.waiting.is_empty() && self.dice.percent(6)) {
            let number = self.waiting.remove(0);
            return format!("{} PREPARED 'p{number}'", self.dice.pick(&["COMMIT", "COMMIT", "ROLLBACK"]));
        }
        match self.dice.within(0, 99) {
            0..=29 => {
                self.clients[index] = Client { in_a_transaction: true, savepoints: 0 };
                let begin = self.dice.weighed(&[
                    (4, "BEGIN"),
                    (1, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
                    (1, "BEGIN ISOLATION LEVEL SERIALIZABLE"),
                ]);
                format!("{begin}; {}", sql::in_a_transaction(&mut self.dice))
            }
            30..=59 => sql::alone(&mut self.dice),
            _ => sql::in_a_transaction(&mut self.dice),
        }
    }

    fn inside(&mut self, index: usize) -> String {
        let savepoints = self.clients[index].savepoints;
        match self.dice.within(0, 99) {
            0..=11 => self.end(index, "COMMIT".to_owned()),
            12..=16 => self.end(index, "ROLLBACK".to_owned()),
            17..=24 => {
                let number = self.prepared;
                self.prepared += 1;
                self.waiting.push(number);
                self.end(index, format!("PREPARE TRANSACTION 'p{number}'"))
            }
            25..=37 => {
                self.clients[index].savepoints += 1;
                format!("SAVEPOINT a{savepoints}; {}", sql::in_a_transaction(&mut self.dice))
            }
            38..=47 if savepoints > 0 => {
                let to = self.dice.within(0, savepoints - 1);
                let how = self.dice.pick(&["ROLLBACK TO", "ROLLBACK TO", "RELEASE"]);
                self.clients[index].savepoints = if how == "RELEASE" { to } else { to + 1 };
                format!("{how} a{to}; {}", sql::in_a_transaction(&mut self.dice))
            }
            _ => sql::in_a_transaction(&mut self.dice),
        }
    }

    fn end(&mut self, index: usize, sql: String) -> String {
        self.clients[index] = Client::default();
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_of_its_seed_alone() {
        assert_eq!(Plan::of(11), Plan::of(11));
        assert_ne!(Plan::of(11).steps, Plan::of(12).steps);
    }

    /// `make test` runs these seeds for what its tests' names say.
    #[test]
    fn the_seeds_of_the_tests_hold_what_the_tests_are_named_for() {
        let holds = |seed, wanted: fn(&Step) -> bool| Plan::of(seed).steps.iter().any(wanted);
        assert!(holds(7, |step| matches!(step, Step::Restart(_))));
        assert!(holds(9, |step| matches!(step, Step::Crash(Crash::Postmaster, _))));
        assert!(holds(9, |step| matches!(step, Step::Base(_))));
        assert!(holds(18, |step| matches!(step, Step::Crash(Crash::Immediate, _))));
        assert!(holds(18, |step| matches!(step, Step::Slice)));
        assert_eq!(Plan::of(18).settings.store, zenith_testkit::store::Kind::Minio);
    }

    #[test]
    fn some_plans_are_checked_with_every_page_and_others_go_without_those() {
        let checked = (0..300).filter(|seed| Plan::of(*seed).checked).count();
        assert!((60..120).contains(&checked), "{checked}");
    }

    #[test]
    fn three_hundred_plans_hold_every_kind_of_step_and_setting() {
        let plans: Vec<Plan> = (0..300).map(Plan::of).collect();
        let text = format!("{plans:?}");
        for word in [
            "Immediate",
            "Postmaster",
            "Backend",
            "Base(",
            "Slice",
            "Restart(",
            "Name(",
            "End",
            "Minio",
            "Folder",
            "VACUUM FULL",
            "CLUSTER",
            "CONCURRENTLY",
            "PREPARE TRANSACTION",
            "ROLLBACK PREPARED",
            "COMMIT PREPARED",
            "SAVEPOINT",
            "FOR SHARE",
            "file_copy",
            "wal_log",
            "TABLESPACE",
            "UNLOGGED",
            "TEMP TABLE",
            "TRUNCATE",
            "USING hash",
            "USING gin",
            "USING gist",
            "USING spgist",
            "USING brin",
            "USING bloom",
            "setval",
            "EXTERNAL",
            "CHECKPOINT",
            "pg_switch_wal",
            "full_page_writes = off",
            "wal_log_hints = on",
            "wal_level = logical",
            "wal_compression = lz4",
            "track_commit_timestamp = on",
            "32600",
            "4294967200",
        ] {
            assert!(text.contains(word), "{word}");
        }
    }
}
