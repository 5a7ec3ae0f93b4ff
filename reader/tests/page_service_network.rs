//! What clients of the page service that come over the network must show, and what they are told.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod page_client;
mod world;

use page_client::*;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zenith_reader::service::access::{Access, Tls};
use zenith_reader::service::connection::Ended;
use zenith_reader::service::tokens::Tokens;
use zenith_reader::service::{Door, Limits, Listener, serve};

const ALL: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const CHILD: &str = "cccccccccccccccccccccccccccccccccccccccc";
const OTHERS: &str = "oooooooooooooooooooooooooooooooooooooooo";

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A certificate, what a service does with it, and what its clients trust.
struct Certified {
    tls: Tls,
    connector: TlsConnector,
}

impl Certified {
    fn new() -> Certified {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let tls = Tls::new(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Certified { tls, connector: TlsConnector::from(Arc::new(config)) }
    }

    /// Three tokens: for everything, for the timeline "child", and for another cluster.
    fn access(&self) -> Access {
        let tokens = format!("{ALL} main\n{CHILD} main child\n{OTHERS} others\n");
        Access::tls(self.tls.clone(), Some(Tokens::parse(&tokens, "main").unwrap()))
    }

    async fn encrypted<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> Client<TlsStream<S>> {
        stream.write_all(&SSL_REQUEST).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        let name = ServerName::try_from("localhost").unwrap();
        Client(self.connector.connect(name, stream).await.unwrap())
    }

    /// A client that has said who it is, and was asked for its token.
    async fn asked(&self, service: &Service) -> Client<TlsStream<DuplexStream>> {
        let stream = service.connect_by(self.access(), 64 << 10).0;
        let mut client = self.encrypted(stream).await;
        client.startup().await;
        let (kind, body) = client.receive().await;
        assert_eq!((kind, &body[..]), (b'R', &[0, 0, 0, 3][..]), "a password in clear text");
        client
    }

    async fn with_token(&self, service: &Service, token: &str) -> Client<TlsStream<DuplexStream>> {
        let mut client = self.asked(service).await;
        client.send(b'p', format!("{token}\0").as_bytes()).await;
        client.is_let_in().await;
        client
    }
}

#[tokio::test]
async fn who_shows_a_token_inside_tls_is_served() {
    let world = small_world(1).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let mut client = certified.with_token(&service, ALL).await;
    client.send(b'Q', b"pagestream main\0").await;
    assert_eq!(client.receive().await.0, b'W');
    assert_eq!(marks(client.get(400, pages(0, 4)).await), [10, 20, 12, 13]);
    client.send(b'X', b"").await;
    assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_wrong_token_is_told_after_a_pause_that_holds_up_nobody_else() {
    let world = small_world(2).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    for wrong in [OTHERS, "", &ALL[1..]] {
        service.clock.set(0);
        let mut client = certified.asked(&service).await;
        client.send(b'p', format!("{wrong}\0").as_bytes()).await;
        // Time stands still, and others are served.
        certified.with_token(&service, ALL).await;
        assert!(futures::poll!(std::pin::pin!(client.receive())).is_pending());
        service.clock.set(1000);
        let (state, message) = client.error().await;
        assert!(state == "28P01" && message.contains("token file"), "{message}");
        assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn what_is_no_password_is_refused() {
    let world = small_world(3).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let mut client = certified.asked(&service).await;
    client.send(b'Q', b"SHOW timelines\0").await;
    assert_eq!(client.error().await.0, "08P01");
    let mut client = certified.asked(&service).await;
    client.send(b'p', &[b'a'; 4096]).await;
    assert_eq!(client.error().await.0, "08P01");
    // One that has none to give hangs up.
    drop(certified.asked(&service).await);
    let ended = service.ended.lock().unwrap().pop().unwrap();
    assert!(matches!(ended.await.unwrap(), Err(Ended::Broken(_))));
}

#[tokio::test]
async fn plain_text_is_refused_where_tls_is_asked_for_and_served_where_it_is_not() {
    let world = small_world(4).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let mut plain = service.connect_by(certified.access(), 1 << 10);
    plain.startup().await;
    let (state, message) = plain.error().await;
    assert!(state == "28000" && message.contains("sslmode"), "{message}");
    assert_eq!(plain.0.read(&mut [0]).await.unwrap(), 0);

    service.connect_by(Access::open(None), 1 << 10).begin().await;
    let mut plain = service.connect_by(Access::open(None), 1 << 10);
    plain.0.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(plain.0.read_u8().await.unwrap(), b'N');
    plain.begin().await;
    service.connect_by(Access::open(Some(certified.tls.clone())), 1 << 10).begin().await;
    let stream = service.connect_by(Access::open(Some(certified.tls.clone())), 64 << 10).0;
    certified.encrypted(stream).await.begin().await;
    let stream = service.connect_by(Access::tls(certified.tls.clone(), None), 64 << 10).0;
    certified.encrypted(stream).await.begin().await;
}

/// Somebody in between who slips a start-up packet in before TLS begins must not speak for the client.
#[tokio::test]
async fn plain_text_that_follows_a_request_for_tls_is_never_read_as_the_clients() {
    let world = small_world(5).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let startup = [&[0, 0, 0, 16, 0, 3, 0, 0][..], b"user\0u\0\0"].concat();
    let mut client = service.connect_by(Access::tls(certified.tls.clone(), None), 1 << 10);
    client.0.write_all(&[&SSL_REQUEST[..], &startup].concat()).await.unwrap();
    let mut said = Vec::new();
    client.0.read_to_end(&mut said).await.unwrap();
    assert_eq!(said[0], b'S');
    assert!(!said.contains(&b'Z') && said.len() < 16, "an alert at most: {said:?}");
}

#[tokio::test]
async fn a_token_of_one_timeline_opens_that_one_and_tells_of_no_other() {
    let world = small_world(6).await;
    let child = world.branch("child", 300).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let mut client = certified.with_token(&service, CHILD).await;
    client.send(b'Q', b"SHOW timelines\0").await;
    assert_eq!(client.receive().await.0, b'T');
    let (kind, row) = client.receive().await;
    let row = String::from_utf8_lossy(&row).into_owned();
    assert!(kind == b'D' && row.contains("child"), "{row}");
    assert_eq!([client.receive().await.0, client.receive().await.0], *b"CZ");
    // One that is there, and some that are not.
    let main = world.identity.timeline;
    let none = "00000000-0000-7000-8000-000000000000";
    for other in ["main", "nobody", none, "no name", &main.to_string()] {
        client.send(b'Q', format!("pagestream \"{other}\"\0").as_bytes()).await;
        let (state, message) = client.error().await;
        let is_query = other == "no name";
        assert_eq!(state, if is_query { "42601" } else { "42501" }, "{message}");
        assert!(is_query || (message.contains("\"child\" only") && !message.contains("main")), "{message}");
        assert_eq!(client.receive().await.0, b'Z');
    }
    let id = child.identity.timeline.to_string();
    for own in ["child", &id] {
        client.send(b'Q', format!("pagestream {own}\0").as_bytes()).await;
        assert_eq!(client.receive().await.0, b'W');
        assert_eq!(marks(client.get(300, pages(1, 1)).await), [20]);
        client.send(b'c', b"").await;
        let end = [client.receive().await.0, client.receive().await.0, client.receive().await.0];
        assert_eq!(end, *b"cCZ");
    }
}

#[tokio::test]
async fn a_token_whose_timeline_is_not_there_opens_nothing_and_tells_of_no_other() {
    let world = small_world(7).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let mut client = certified.with_token(&service, CHILD).await;
    for asked in ["child", "main"] {
        client.send(b'Q', format!("pagestream {asked}\0").as_bytes()).await;
        let (state, message) = client.error().await;
        assert!(state == "42704" && message.contains("child") && !message.contains("main"), "{message}");
        assert_eq!(client.receive().await.0, b'Z');
    }
    client.send(b'Q', b"SHOW timelines\0").await;
    let end = [client.receive().await.0, client.receive().await.0, client.receive().await.0];
    assert_eq!(end, *b"TCZ");
}

/// A service of four places with a door of each kind.
#[tokio::test]
async fn clients_that_stall_before_they_are_let_in_leave_room_and_lose_their_places_in_time() {
    let world = small_world(8).await;
    let (service, certified) = (Service::of(&world), Certified::new());
    let folder = tempfile::tempdir().unwrap();
    let local = UnixListener::bind(folder.path().join("s")).unwrap();
    let network = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = network.local_addr().unwrap();
    let (_access, access) = watch::channel(Arc::new(certified.access()));
    let doors = vec![Door::local(local), Door { listener: Listener::Tcp(network), access }];
    let limits = Limits { connections: 4, blocks: 32, working: 8 };
    let serving = tokio::spawn(serve(doors, Arc::clone(&service.source), limits, service.stop.subscribe()));
    let connect = async || TcpStream::connect(address).await.unwrap();

    // One that says nothing, one in the middle of TLS.
    let mut silent = connect().await;
    let mut stalled = connect().await;
    stalled.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(stalled.read_u8().await.unwrap(), b'S');
    let mut refused = certified.encrypted(connect().await).await;
    refused.startup().await;
    assert_eq!(refused.error().await.0, "53300");
    // Half of the places are still there for those who are at home.
    let mut home = [const { None }; 2];
    for place in &mut home {
        let mut client = Client(UnixStream::connect(folder.path().join("s")).await.unwrap());
        client.begin().await;
        *place = Some(client);
    }

    service.clock.set(10_000);
    for gone in [&mut silent, &mut stalled] {
        assert_eq!(gone.read(&mut [0]).await.unwrap(), 0);
    }
    let mut let_in = Vec::new();
    while let_in.len() < 2 {
        let mut client = certified.encrypted(connect().await).await;
        client.startup().await;
        if client.receive().await.0 == b'R' {
            client.send(b'p', format!("{ALL}\0").as_bytes()).await;
            client.is_let_in().await;
            let_in.push(client);
        }
    }
    service.stop.send_replace(true);
    assert_eq!(serving.await.unwrap(), 0);
}
