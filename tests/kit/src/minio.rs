//! A real MinIO: one server for all tests of a process, a bucket of its own for each test. The server ends with the
//! process, however that ends. Which release, and how it is got: `vendor/minio.md`.

use crate::pg::when_gone;
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use testcontainers::core::{ContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt};
use zenith_store::{Env, Store, StoreSettings};

const ACCESS_KEY: &str = "zenith-tests";
const REGION: &str = "us-east-1";
const PORT: u16 = 9000;
/// What the server prints when it answers.
const READY: &str = "API:";
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// A free port may be taken before the server binds it.
const PORT_TRIES: usize = 5;

/// The server of this process.
#[derive(Debug)]
pub struct Minio {
    endpoint: String,
    secret_key: String,
    buckets: AtomicU64,
    /// While this pipe is open the server lives.
    _lifeline: ChildStdin,
}

/// One test's bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// `s3://bucket/prefix`.
    pub url: String,
    /// What the environment of a program needs in order to use it.
    pub variables: Vec<(String, String)>,
}

impl Bucket {
    /// The bucket as a store.
    pub fn store(&self) -> Store {
        Store::open(&self.url, &self.settings()).expect("a MinIO bucket")
    }

    /// The options that open it.
    pub fn settings(&self) -> StoreSettings {
        StoreSettings::from_variables(self.variables.clone())
    }
}

impl Minio {
    /// The server, started by whoever asks first. Panics, and so fails the test, if there is none to be had.
    pub fn shared() -> &'static Minio {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(Minio::start)
    }

    /// A new bucket.
    pub async fn bucket(&self) -> Bucket {
        let name = format!("test-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        self.create_bucket(&name).await;
        Bucket { url: format!("s3://{name}/a/prefix"), variables: self.variables() }
    }

    /// The environment variables that lead to this server.
    pub fn variables(&self) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", &*self.secret_key),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL", &*self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    fn start() -> Minio {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vendor/minio/start");
        let ready = Command::new(script).stderr(Stdio::inherit()).output().expect(script);
        let line = String::from_utf8_lossy(&ready.stdout).trim().to_owned();
        assert!(ready.status.success(), "{script} failed: tests need a real MinIO");
        let secret_key = Env::system().ids.fresh().simple().to_string();
        let (endpoint, lifeline) = match line.split_once(' ') {
            Some(("image", image)) => start_container(image, &secret_key),
            Some(("binary", program)) => start_process(Path::new(program), &secret_key),
            _ => panic!("{script} says \"{line}\""),
        };
        Minio { endpoint, secret_key, buckets: AtomicU64::new(0), _lifeline: lifeline }
    }

    async fn create_bucket(&self, name: &str) {
        let credential =
            AwsCredential { key_id: ACCESS_KEY.to_owned(), secret_key: self.secret_key.clone(), token: None };
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = "PUT".parse().expect("a method");
        *request.uri_mut() = format!("{}/{name}", self.endpoint).parse().expect("a URL");
        AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut request, None).expect("a signature");
        let options = ClientOptions::new().with_allow_http(true);
        let client = ReqwestConnector::default().connect(&options).expect("an HTTP client");
        let answer = client.execute(request).await.expect("MinIO answers");
        assert!(answer.status().is_success(), "bucket {name}: {}", answer.status());
    }
}

fn start_container(image: &str, secret_key: &str) -> (String, ChildStdin) {
    let (name, tag) = image.rsplit_once(':').expect("name:tag");
    let container_name = format!("zenith-minio-{}", std::process::id());
    let lifeline = when_gone("docker rm -f -v \"$1\"", &[&container_name]);
    let request = GenericImage::new(name, tag)
        .with_exposed_port(ContainerPort::Tcp(PORT))
        .with_wait_for(WaitFor::message_on_either_std(READY))
        .with_startup_timeout(START_TIMEOUT)
        .with_container_name(container_name)
        .with_env_var("MINIO_ROOT_USER", ACCESS_KEY)
        .with_env_var("MINIO_ROOT_PASSWORD", secret_key)
        .with_env_var("MINIO_BROWSER", "off")
        .with_cmd(["server", "--address", ":9000", "/data"]);
    // The tests' own runtimes come and go.
    let started = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let container = request.start().await.expect("the MinIO container starts");
            let host = container.get_host().await.expect("its host");
            let port = container.get_host_port_ipv4(PORT).await.expect("its port");
            // Dropping it would stop the server; the lifeline does that.
            std::mem::forget(container);
            format!(
                "http://{}:{port}",
                if host.to_string() == "localhost" { "127.0.0.1".into() } else { host.to_string() }
            )
        })
    });
    (started.join().expect("MinIO starts"), lifeline)
}

fn start_process(program: &Path, secret_key: &str) -> (String, ChildStdin) {
    let mut output = String::new();
    for _ in 0..PORT_TRIES {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("its number").to_string();
        drop(free);
        let data = tempfile::tempdir().expect("a directory").keep();
        let mut server = Command::new("sh")
            .args(["-c", "exec \"$@\" 2>&1", "sh"])
            .arg(program)
            .args(["server", "--address", &address])
            .arg(&data)
            .env("MINIO_ROOT_USER", ACCESS_KEY)
            .env("MINIO_ROOT_PASSWORD", secret_key)
            .env("MINIO_BROWSER", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("MinIO starts");
        let arguments = [server.id().to_string(), data.display().to_string()];
        let lifeline = when_gone("kill -9 \"$1\"; rm -rf \"$2\"", &[&arguments[0], &arguments[1]]);
        if answers(&mut server, &mut output) {
            return (format!("http://{address}"), lifeline);
        }
    }
    panic!("MinIO does not start:\n{output}");
}

/// Reads what the server prints until it answers; `false` if it ends or takes too long. What comes later is thrown
/// away.
fn answers(server: &mut Child, output: &mut String) -> bool {
    let lines = BufReader::new(server.stdout.take().expect("its output")).lines();
    let (sender, printed) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    output.clear();
    while let Ok(line) = printed.recv_timeout(START_TIMEOUT) {
        output.push_str(&line);
        output.push('\n');
        if line.contains(READY) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::conformance;
    use crate::env::test_env;
    use crate::faults::{Fault, FaultStore, Operation, Rule};
    use object_store::path::Path as ObjectPath;
    use std::sync::Arc;
    use zenith_store::{Clock, Creation, PutOutcome, StoreError, create, get_if_present, put_if_absent};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn minio_conforms() {
        conformance(&test_env(4), async || Minio::shared().bucket().await.store()).await;
    }

    #[tokio::test]
    async fn two_buckets_do_not_see_one_another() {
        let (one, other) = (Minio::shared().bucket().await, Minio::shared().bucket().await);
        let path = ObjectPath::from("same/name");
        put_if_absent(&*one.store().objects, &path, "x".into()).await.unwrap();
        assert_eq!(get_if_present(&*other.store().objects, &path, 9).await, Ok(None));
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_is_settled_by_reading_back() {
        let store = Minio::shared().bucket().await.store();
        let faulty = FaultStore::new(Arc::clone(&store.objects), Env::system().clock, 1);
        faulty.faults().add(Rule::new(Fault::AppliedButLost).on(Operation::Put));
        let path = ObjectPath::from("a/b");
        let made = create(&faulty, &test_env(1), &path, "mine".into()).await.unwrap();
        assert_eq!(made, Creation::Same);
    }

    /// Takes the real time, because that is the promise.
    async fn fails_soon(bucket: &Bucket) -> StoreError {
        let clock: Arc<dyn Clock> = Env::system().clock;
        let within_a_minute = |begun: Duration| {
            let took = clock.elapsed() - begun;
            assert!(took < Duration::from_secs(60), "{took:?}");
        };
        let store = bucket.store();
        let begun = clock.elapsed();
        let error = put_if_absent(&*store.objects, &ObjectPath::from("a"), "x".into()).await;
        within_a_minute(begun);
        let begun = clock.elapsed();
        let read = get_if_present(&*store.objects, &ObjectPath::from("a"), 9).await.unwrap_err();
        within_a_minute(begun);
        assert!(!read.to_string().contains("hunter2"), "{read}");
        match error {
            Ok(PutOutcome::Unknown(error)) | Err(error) => error,
            Ok(other) => panic!("{other:?}"),
        }
    }

    fn with(bucket: &Bucket, name: &str, value: &str) -> Bucket {
        let mut changed = bucket.clone();
        changed.variables.retain(|(other, _)| other != name);
        changed.variables.push((name.to_owned(), value.to_owned()));
        changed
    }

    #[tokio::test]
    async fn wrong_credentials_are_told_at_once_and_not_repeated() {
        let bucket = Minio::shared().bucket().await;
        let denied = fails_soon(&with(&bucket, "AWS_SECRET_ACCESS_KEY", "hunter2")).await;
        assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
        assert!(denied.to_string().contains("SignatureDoesNotMatch"), "{denied}");
        assert!(!denied.to_string().contains("hunter2"), "{denied}");
        let denied = fails_soon(&with(&bucket, "AWS_ACCESS_KEY_ID", "nobody")).await;
        assert!(denied.to_string().contains("InvalidAccessKeyId"), "{denied}");
    }

    #[tokio::test]
    async fn a_bucket_that_does_not_exist_is_told_by_its_name() {
        let bucket = Minio::shared().bucket().await;
        let missing = fails_soon(&Bucket { url: "s3://no-such-bucket/x".to_owned(), ..bucket }).await;
        assert!(matches!(missing, StoreError::Refused { .. }), "never for a missing object: {missing}");
        assert!(missing.to_string().contains("NoSuchBucket"), "{missing}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_within_a_minute() {
        let bucket = Minio::shared().bucket().await;
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let nowhere = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let refused = fails_soon(&with(&bucket, "AWS_ENDPOINT_URL", &nowhere)).await;
        assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
        assert!(refused.to_string().contains("refused"), "{refused}");
        let no_name =
            fails_soon(&with(&bucket, "AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")).await;
        assert!(matches!(no_name, StoreError::Unavailable { .. }), "{no_name}");
        assert!(no_name.to_string().contains("no-such-host.invalid"), "{no_name}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_told_within_a_minute() {
        let bucket = Minio::shared().bucket().await;
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let error = fails_soon(&with(&bucket, "AWS_ENDPOINT_URL", &endpoint)).await;
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
}
