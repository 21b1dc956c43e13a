package rocketcluster.clients;

import java.util.Arrays;

/** One entry point for what run.sh runs. */
public final class Main {
    private static final String USAGE = """
        usage: java -cp 'lib/*' rocketcluster.clients.Main MODE --namesrv HOST:PORT [options]
          scenarios  [--only a,b] [--threads N]                    every scenario, one PASS or FAIL line each
          mqadmin    --dir FOLDER                                  the mqadmin commands, checked by their output
          topic      --topic T --queues N                          creates a topic on every master
          store      --topic T --name BROKER --broker ADDRESS --state FILE --seen A,B --cut A --fill C --retain yes
                                                                   finds what was filled in before, fills more in
          failover   --name BROKER --pids ADDRESS=PID,...           kills the group's master under a producer and a consumer
        """;

    private Main() {
    }

    public static void main(String[] args) {
        int code = 2;
        try {
            if (args.length > 0) {
                code = run(args[0], new Options(Arrays.copyOfRange(args, 1, args.length)));
            } else {
                System.err.print(USAGE);
            }
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage() + "\n" + USAGE);
        } catch (Throwable e) {
            e.printStackTrace();
            code = 1;
        }
        System.out.flush();
        // Clients leave threads behind that are no daemons.
        Runtime.getRuntime().halt(code);
    }

    private static int run(String mode, Options options) throws Exception {
        return switch (mode) {
            case "scenarios" -> Scenarios.run(options);
            case "mqadmin" -> Admin.run(options);
            case "topic" -> {
                try (Rig rig = new Rig(options.namesrv(), "", "topic", Rig.admin(options.namesrv()))) {
                    rig.createTopic(options.get("topic"), options.number("queues", 8));
                }
                yield 0;
            }
            case "store" -> Store.run(options);
            case "failover" -> Failover.run(options);
            default -> throw new IllegalArgumentException("unknown mode " + mode);
        };
    }
}
