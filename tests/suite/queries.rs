//! Any Parquet tool reads layers: the queries of docs/queries.md, run as they stand there by DuckDB.

use crate::harness::{Chain, TestStore};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use zenith_testkit::pg::{self, PgOptions};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// The SQL of the page, in its order.
fn documented_queries() -> Vec<String> {
    let page = std::fs::read_to_string(repository().join("docs/queries.md")).expect("docs/queries.md");
    let blocks = page.split("```sql\n").skip(1);
    blocks.map(|block| block.split("```").next().expect("the block's end").to_owned()).collect()
}

/// Rows as DuckDB gives them, values as text.
fn duckdb(query: &str, parameters: &Value) -> Vec<Vec<String>> {
    let python = pg::run(&mut Command::new(repository().join("vendor/duckdb/python")));
    let script = "import duckdb, json, sys\n\
                  query, parameters = sys.argv[1], json.loads(sys.argv[2])\n\
                  used = {k: v for k, v in parameters.items() if '$' + k in query}\n\
                  rows = duckdb.execute(query, used).fetchall()\n\
                  print(json.dumps([[str(v) for v in row] for row in rows]))";
    let output = pg::run(Command::new(python.trim()).args(["-c", script, query, &parameters.to_string()]));
    serde_json::from_str(&output).expect("JSON")
}

/// Copies an object, by the path that `zenith layers` prints, into a folder: DuckDB reads S3 with an extension that it
/// downloads.
fn copy(store: &TestStore, folder: &Path, object: &str) -> String {
    let below_prefix = &object[object.find("main/").expect("the cluster's folder")..];
    let path = folder.join(below_prefix.rsplit('/').next().expect("a name"));
    std::fs::write(&path, store.get(below_prefix)).expect("a copy");
    path.display().to_string()
}

fn the_documented_queries_answer_from_the_objects_that_zenith_layers_lists(store: TestStore) {
    let chain = Chain::start(store, PgOptions::default().initdb("--wal-segsize=1"));
    let primary = &chain.primary;
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    primary.sql("CREATE TABLE busy AS SELECT i, repeat('x', 100) AS v FROM generate_series(1, 10000) i");
    for i in 0..20 {
        primary.sql(&format!("UPDATE busy SET v = 'y{i}' WHERE i = 1"));
    }
    let relnode = primary.sql("SELECT pg_relation_filenode('busy')");
    let updates = primary.sql("SELECT count(*) FROM busy WHERE v LIKE 'y%'");
    assert_eq!(updates, "1");
    chain.archive();
    chain.run("zenith_slicedice", &[]);

    let listed: Value = serde_json::from_str(&chain.run("zenith", &["layers", "--json"])).expect("JSON");
    let layers = listed["layers"].as_array().expect("a list of layers");
    let copies = tempfile::tempdir().expect("a folder");
    let paths = |kind: &str| -> Vec<String> {
        let of_kind = layers.iter().filter(|layer| layer["kind"] == kind);
        of_kind
            .map(|layer| copy(&chain.store, copies.path(), layer["object"].as_str().expect("an object")))
            .collect()
    };
    let parameters = json!({
        "deltas": paths("delta"),
        "events": paths("events"),
        "relnode": relnode.parse::<u32>().expect("a number"),
        "block": 0,
    });
    let queries = documented_queries();
    assert_eq!(queries.len(), 3);

    let by_relation = duckdb(&queries[0], &parameters);
    assert!(by_relation[0][0].contains(&relnode), "the busiest relation is {relnode}: {:?}", by_relation[0]);

    let history = duckdb(&queries[1], &parameters);
    assert!(history.len() > 1, "{history:?}");
    // Pruning belongs to no transaction.
    let uncommitted = history.iter().filter(|change| change[3] != "0" && change[5] == "None").count();
    assert_eq!(uncommitted, 0, "every change of block 0 committed: {history:?}");

    let by_minute = duckdb(&queries[2], &parameters);
    let commits: u64 = by_minute.iter().map(|minute| minute[1].parse::<u64>().expect("a number")).sum();
    assert!(commits >= 21, "{by_minute:?}");
}

#[test]
fn the_documented_queries_answer_from_what_zenith_layers_lists_of_a_folder() {
    the_documented_queries_answer_from_the_objects_that_zenith_layers_lists(TestStore::folder());
}

#[test]
fn the_documented_queries_answer_from_what_zenith_layers_lists_of_minio() {
    the_documented_queries_answer_from_the_objects_that_zenith_layers_lists(TestStore::minio());
}
