"""Codecs: an array in, a `Packed` out, and back. One file a codec; the object is the configuration."""

from trimtab.codecs.aesz import AESZ
from trimtab.codecs.blocks import Blocks
from trimtab.codecs.codec import Codec, codec_ids, make_codec
from trimtab.codecs.embedding import Embedding
from trimtab.codecs.enec import ENEC
from trimtab.codecs.gwlz import GWLZ
from trimtab.codecs.raw import Raw
from trimtab.codecs.sparse import Sparse
from trimtab.codecs.sz import SZ

__all__ = ["AESZ", "ENEC", "GWLZ", "SZ", "Blocks", "Codec", "Embedding", "Raw", "Sparse", "codec_ids", "make_codec"]
