//! A server that answers as told, because a real one cannot be made to lose its answers.

use super::*;
use crate::{Store, StoreSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    /// Reads the request and closes the connection.
    Nothing,
}

use Answer::{Nothing, Status};

async fn read_request(stream: &mut TcpStream) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length:").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return;
            }
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => request.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    }
}

/// What a put-if-absent ends in at a server that gives these answers, one after another.
async fn put_at(answers: &[Answer]) -> Result<PutOutcome, StoreError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answers = answers.to_vec();
    let server = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            if let Status(status) = answer {
                let text = format!(
                    "HTTP/1.1 {status} x\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        }
    });
    let settings = StoreSettings::default()
        .set("aws_endpoint_url", endpoint)
        .set("aws_allow_http", "true")
        .set("aws_region", "here")
        .set("aws_access_key_id", "k")
        .set("aws_secret_access_key", "s");
    let store = Store::open("s3://bucket", &settings).unwrap();
    let outcome = put_if_absent(&*store.objects, &Path::from("a/b"), "body".into()).await;
    server.await.unwrap();
    outcome
}

#[tokio::test]
async fn a_clear_answer_is_believed() {
    assert_eq!(put_at(&[Status(200)]).await, Ok(PutOutcome::Created));
    assert_eq!(put_at(&[Status(412)]).await, Ok(PutOutcome::AlreadyExists));
    assert_eq!(put_at(&[Status(304)]).await, Ok(PutOutcome::AlreadyExists));
    assert!(matches!(put_at(&[Status(403)]).await, Err(StoreError::Denied { .. })));
    assert!(matches!(put_at(&[Status(401)]).await, Err(StoreError::Denied { .. })));
    assert!(matches!(put_at(&[Status(404)]).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(put_at(&[Status(400)]).await, Err(StoreError::Refused { .. })));
}

#[tokio::test]
async fn a_conflict_with_a_put_under_way_is_unknown_and_not_an_object_that_exists() {
    assert!(matches!(put_at(&[Status(409)]).await, Ok(PutOutcome::Unknown(_))));
}

#[tokio::test]
async fn an_attempt_that_may_have_landed_makes_every_later_refusal_unknown() {
    for earlier in [Status(500), Status(503)] {
        for later in [Status(412), Status(403), Status(404)] {
            assert!(matches!(put_at(&[earlier, later]).await, Ok(PutOutcome::Unknown(_))));
        }
        assert_eq!(put_at(&[earlier, Status(200)]).await, Ok(PutOutcome::Created));
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_is_unknown() {
    // The client repeats it, and its own first attempt may be what "exists".
    assert!(matches!(put_at(&[Nothing, Status(412)]).await, Ok(PutOutcome::Unknown(_))));
}
