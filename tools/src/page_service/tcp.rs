//! Sockets on the network.

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_reuseaddr, set_tcp_keepcnt, set_tcp_keepidle,
    set_tcp_keepintvl,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;

/// As many clients may wait to be accepted.
const BACKLOG: i32 = 128;
/// A client that is silent for so long is asked whether it is there, and is given up after so many questions: two minutes in
/// all, after which its place is free.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 6;

/// Listens on the addresses of a host, or on all there are for `*`, as PostgreSQL does.
///
/// # Errors
/// One of them is in use, or none is this machine's.
pub(super) async fn listen_on(host: &str, port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let listening = async {
        let (mut listeners, mut missing) = (Vec::new(), None);
        for address in addresses(host, port).await? {
            match bound(address) {
                Ok(listener) => listeners.push(listener),
                // Of a name that has several, one may be of a family that this machine does not use.
                Err(error @ (Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => missing = Some((address, error)),
                Err(error) => return Err(error).with_context(|| address.to_string()),
            }
        }
        if listeners.is_empty() {
            match missing {
                Some((address, error)) => Err(error).with_context(|| address.to_string())?,
                None => bail!("it has no address"),
            }
        }
        Ok(listeners.into_iter().map(TcpListener::from_std).collect::<Result<Vec<_>, _>>()?)
    };
    listening
        .await
        .with_context(|| format!("cannot listen on \"{host}\", port {port}: choose another address or -p"))
}

async fn addresses(host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let host = host.trim();
    if host == "*" {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        return Ok(any.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    Ok(tokio::net::lookup_host((bare, port)).await?.collect())
}

/// What is set here is every connection's, too.
fn bound(address: SocketAddr) -> Result<std::net::TcpListener, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a service that was here before do not stand in the way.
    set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    set_socket_keepalive(&socket, true)?;
    set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::socket_keepalive;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn a_host_is_listened_on_and_its_clients_are_watched() {
        for host in ["localhost", "127.0.0.1", "*"] {
            let listeners = listen_on(host, 0).await.expect("listening");
            let port = listeners[0].local_addr().expect("an address").port();
            let (client, accepted) =
                tokio::join!(TcpStream::connect(("127.0.0.1", port)), listeners[0].accept());
            client.expect("connected");
            assert!(socket_keepalive(accepted.expect("accepted").0).expect("asked"));
        }
    }

    #[tokio::test]
    async fn an_address_in_use_and_one_of_another_machine_are_refused_by_name() {
        let first = listen_on("127.0.0.1", 0).await.expect("listening");
        let port = first[0].local_addr().expect("an address").port();
        let refused = format!("{:#}", listen_on("127.0.0.1", port).await.expect_err("in use"));
        assert!(refused.contains("127.0.0.1") && refused.contains(&port.to_string()), "{refused}");
        let refused = format!("{:#}", listen_on("192.0.2.1", 0).await.expect_err("not ours"));
        assert!(refused.contains("192.0.2.1"), "{refused}");
    }
}
