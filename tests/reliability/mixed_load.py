"""Very many calls, a tenth of them cancelled or refused, from a process of its own.

``python -m tests.reliability.mixed_load TARGET N_CALLS`` prints how they ended.
"""

import asyncio
import sys
from collections import Counter
from itertools import count

import grpc
import uvloop
from candidate_search.v1 import candidate_search_service_pb2 as pb

METHOD = "/candidate_search.v1.CandidateSearchService/SearchCandidates"
N_IN_FLIGHT = 32
QUERY = pb.Query(embedding=pb.Embedding(values=[1.0] * 8))
GOOD = pb.SearchCandidatesRequest(query=QUERY).SerializeToString()
REFUSED = pb.SearchCandidatesRequest(query=QUERY, candidate_count=-1).SerializeToString()


async def main(target: str, n_calls: int) -> None:
    codes: Counter[str] = Counter()
    numbers = count()
    async with grpc.aio.insecure_channel(target) as channel:
        method = channel.unary_unary(METHOD)

        async def keep_calling() -> None:
            while (number := next(numbers)) < n_calls:
                call = method(REFUSED if number % 20 == 0 else GOOD)
                if number % 20 == 10:
                    await asyncio.sleep(0)  # so that it is on its way
                    call.cancel()
                try:
                    await call
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
                except asyncio.CancelledError:
                    codes["CANCELLED"] += 1

        await asyncio.gather(*(keep_calling() for _ in range(N_IN_FLIGHT)))
    sys.stdout.write(f"{dict(codes)}\n")


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
