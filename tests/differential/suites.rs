//! PostgreSQL's own test suites as workloads: regression, isolation, contrib.
//!
//! The drivers come with the server's development package, the cases with the distribution's source package, which
//! `vendor/postgresql/source` fetches. Whether a case prints what it should does not matter here: the cases are older or
//! newer than the server by a minor release. That they ran does.

use crate::primary::Primary;
use std::ops::Add;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use zenith_testkit::pg;

/// Contrib suites that leave something in WAL. `bloom` writes generic records, the others feed the built-in access
/// methods.
const CONTRIB: [&str; 17] = [
    "amcheck",
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "hstore",
    "intarray",
    "isn",
    "ltree",
    "pageinspect",
    "pg_surgery",
    "pg_trgm",
    "pg_visibility",
    "pgstattuple",
    "seg",
    "tsm_system_rows",
];

/// The cases and the drivers.
pub(crate) struct Suites {
    tree: PathBuf,
    drivers: PathBuf,
    /// What the drivers write, and the libraries that the cases load.
    scratch: TempDir,
}

/// What a driver reported.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Ran {
    /// Cases that ran to their end.
    pub(crate) cases: usize,
    /// Those of them that printed something else than expected.
    pub(crate) unexpected: usize,
}

impl Add for Ran {
    type Output = Ran;

    fn add(self, other: Ran) -> Ran {
        Ran { cases: self.cases + other.cases, unexpected: self.unexpected + other.unexpected }
    }
}

impl Suites {
    /// Fetches the cases, unless they are there, and builds the regression suite's C library.
    pub(crate) fn fetch() -> Suites {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the checkout");
        let tree = pg::run(&mut Command::new(root.join("vendor/postgresql/source")));
        let pgxs = pg::run(pg::command(pg::bin_dir().join("pg_config")).arg("--pgxs"));
        // …/lib/pgxs/src/makefiles/pgxs.mk
        let drivers = Path::new(pgxs.trim()).ancestors().nth(2).expect("pgxs").join("test");
        let suites = Suites { tree: PathBuf::from(tree.trim()), drivers, scratch: pg::server_dir() };
        suites.build_libraries();
        suites
    }

    /// `regress.so`, built against the server's headers, and the two of contrib's that the cases load from beside it.
    fn build_libraries(&self) {
        let config = |what: &str| {
            let out = pg::run(pg::command(pg::bin_dir().join("pg_config")).arg(what));
            PathBuf::from(out.trim())
        };
        let built = self.scratch.path().join("regress.so");
        pg::run(
            Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-w", "-I"])
                .arg(config("--includedir-server"))
                .arg("-o")
                .arg(&built)
                .arg(self.tree.join("src/test/regress/regress.c")),
        );
        for library in ["refint.so", "autoinc.so"] {
            let source = config("--pkglibdir").join(library);
            std::os::unix::fs::symlink(source, self.scratch.path().join(library)).expect("a link");
        }
    }

    /// The regression suite with its parallel schedule, in the database `regression`.
    pub(crate) fn regression(&self, primary: &Primary) -> Ran {
        let inputs = self.tree.join("src/test/regress");
        let schedule = format!("--schedule={}", inputs.join("parallel_schedule").display());
        self.drive(
            primary,
            "regress/pg_regress",
            &inputs,
            "regression",
            &[schedule, "--max-concurrent-tests=20".to_owned()],
        )
    }

    /// The isolation suite, with the cases that need prepared transactions.
    pub(crate) fn isolation(&self, primary: &Primary) -> Ran {
        let inputs = self.tree.join("src/test/isolation");
        let mut arguments = vec![format!("--schedule={}", inputs.join("isolation_schedule").display())];
        arguments.extend(["prepared-transactions", "prepared-transactions-cic"].map(str::to_owned));
        self.drive(primary, "isolation/pg_isolation_regress", &inputs, "isolation_regression", &arguments)
    }

    /// The contrib suites, each in a database of its own that stays.
    pub(crate) fn contrib(&self, primary: &Primary) -> Ran {
        CONTRIB.iter().fold(Ran::default(), |ran, name| ran + self.contrib_suite(primary, name))
    }

    fn contrib_suite(&self, primary: &Primary, name: &str) -> Ran {
        let inputs = self.tree.join("contrib").join(name);
        let cases = regress_cases(&inputs.join("Makefile"));
        self.drive(primary, "regress/pg_regress", &inputs, &format!("contrib_{name}"), &cases)
    }

    fn drive(
        &self,
        primary: &Primary,
        driver: &str,
        inputs: &Path,
        database: &str,
        arguments: &[String],
    ) -> Ran {
        let outputs = self.scratch.path().join(database);
        std::fs::create_dir_all(&outputs).expect("a directory");
        pg::give_to_server(&outputs);
        let output = pg::command(self.drivers.join(driver))
            .arg(format!("--bindir={}", pg::bin_dir().display()))
            .arg(format!("--inputdir={}", inputs.display()))
            .arg(format!("--outputdir={}", outputs.display()))
            .arg(format!("--dlpath={}", self.scratch.path().display()))
            .arg(format!("--host={}", primary.server.socket().display()))
            .arg(format!("--dbname={database}"))
            .arg("--user=postgres")
            .args(arguments)
            // psql reads the cases' data files relative to where it runs.
            .current_dir(inputs)
            .output()
            .expect("the driver exists");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ran = read_results(&text);
        println!("{driver} in {database}: {ran:?}");
        text.lines().filter(|line| line.contains("FAILED")).for_each(|line| println!("  {line}"));
        if std::env::var_os("ZENITH_DIFFERENTIAL_DIFFS").is_some() {
            println!("{}", std::fs::read_to_string(outputs.join("regression.diffs")).unwrap_or_default());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)) && ran.cases > 0, "{text}\n{stderr}");
        ran
    }
}

/// The cases that a contrib module's Makefile lists under `REGRESS`.
fn regress_cases(makefile: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(makefile).expect("a Makefile");
    let joined = text.replace("\\\n", " ");
    let line = joined.lines().find_map(|line| line.strip_prefix("REGRESS = "));
    line.expect("REGRESS").split_whitespace().map(str::to_owned).collect()
}

/// Counts the lines `name ... ok` and `name ... FAILED` of a driver.
fn read_results(text: &str) -> Ran {
    let results = text.lines().filter_map(|line| line.split_once(" ... ")).map(|(_, result)| result.trim());
    results.fold(Ran::default(), |ran, result| {
        if result.starts_with("ok") {
            Ran { cases: ran.cases + 1, ..ran }
        } else if result.starts_with("FAILED") || result.starts_with("failed") {
            Ran { cases: ran.cases + 1, unexpected: ran.unexpected + 1 }
        } else {
            ran
        }
    })
}
