from serving.studio.server import main

main()
