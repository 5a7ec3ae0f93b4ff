//! How clients of one socket are let in: their transport, and what proves who they are.

use super::tokens::Tokens;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error as TlsError, ServerConfig};

/// PostgreSQL's name of its protocol, for clients that say which one they mean.
const ALPN: &[u8] = b"postgresql";
/// Certificates that a chain may hold; PostgreSQL's clients follow fewer.
const CHAIN: usize = 32;

/// What clients of one socket must do before they may ask.
#[derive(Clone, Debug)]
pub struct Access {
    tls: Option<Tls>,
    plain: bool,
    tokens: Option<Arc<Tokens>>,
}

/// A certificate and its key, ready for clients.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Files that TLS cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// The certificates.
    #[error(
        "the certificate file cannot be used: {0}; it must hold a certificate and those that lead to its \
             authority, PEM, the server's own first"
    )]
    Certificate(String),
    /// The key. What it holds is never part of a message.
    #[error("the key file cannot be used: {0}; it must hold one private key without a passphrase, PEM")]
    Key(&'static str),
    /// Both, together.
    #[error("the certificate and the key cannot be used together: {0}")]
    Together(TlsError),
}

impl Access {
    /// For whoever can open the socket: it is a Unix socket, whose permissions decide.
    pub fn local() -> Access {
        Access { tls: None, plain: true, tokens: None }
    }

    /// For the network: inside TLS alone, and with a token if there are any. A token never travels outside TLS.
    pub fn tls(tls: Tls, tokens: Option<Tokens>) -> Access {
        Access { tls: Some(tls), plain: false, tokens: tokens.map(Arc::new) }
    }

    /// For a network where nobody else is: without TLS, or inside it where the client wants that, and without tokens.
    pub fn open(tls: Option<Tls>) -> Access {
        Access { tls, plain: true, tokens: None }
    }

    pub(super) fn acceptor(&self) -> Option<&TlsAcceptor> {
        self.tls.as_ref().map(|tls| &tls.0)
    }

    pub(super) fn allows_plain(&self) -> bool {
        self.plain
    }

    pub(super) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_deref()
    }
}

impl Tls {
    /// From PEM: the certificate with those that lead to its authority, and its private key.
    ///
    /// # Errors
    /// One of them is not what it should be, or they do not belong together.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Tls, BadTls> {
        let chain: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(|error| BadTls::Certificate(error.to_string()))?;
        if chain.is_empty() || chain.len() > CHAIN {
            return Err(BadTls::Certificate(format!("it holds {} certificates", chain.len())));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            PemError::NoItemsFound => BadTls::Key("there is none that is not encrypted"),
            _ => BadTls::Key("it is no PEM"),
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(BadTls::Together)?;
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(BadTls::Together)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Without the key.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_refused_by_what_is_wrong() {
        let [one, other] =
            [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
        let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        Tls::new(certificate.as_bytes(), key.as_bytes()).unwrap();
        let refused = |certificate: &str, key: &str| {
            let message = Tls::new(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string();
            let secret = key.lines().nth(1).unwrap_or("PRIVATE");
            assert!(!message.contains(secret), "{message}");
            message
        };
        assert!(refused("", &key).contains("0 certificates"));
        assert!(refused(&key, &key).contains("0 certificates"));
        assert!(refused(&certificate, &certificate).contains("key file"));
        assert!(
            refused(&certificate, &key.replace("PRIVATE", "ENCRYPTED PRIVATE")).contains("not encrypted")
        );
        assert!(refused(&certificate, &key[..80]).contains("key file"));
        assert!(refused(&certificate, &other.signing_key.serialize_pem()).contains("together"));
        let chain = certificate.repeat(CHAIN + 1);
        assert!(refused(&chain, &key).contains("33 certificates"));
    }
}
